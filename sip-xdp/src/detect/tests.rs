//! What the detector makes of whole conversations.

use super::*;
