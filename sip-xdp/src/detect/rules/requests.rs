//! `requests`: a flood of requests of any method by one sender. [`super::volume`] finds the sender.

use sip_xdp_common::limits::gcra::LimitKind;

use super::super::{Action, Detector};
use super::rule::{BanKind, Heard, Rule, Signal};

threshold! {
    /// `[detect.requests]`.
    count = 50, seconds = 10
}

pub(in super::super) struct Requests;

impl Rule for Requests {
    const NAME: &'static str = "requests";
    const COMMENT: &'static str = "A flood of requests of any method by one sender.";
    const KINDS: &'static [BanKind] = &[BanKind {
        name: "requests",
        evidence: "requests of any method over the limit `count` in `per`, half of them from one \
                   port, with one Call-ID or for one user",
        limits: "unknown sources only, never a served source; not while the registrar's responses \
                 are unseen",
    }];

    type Settings = Settings;
    type Counts = ();
    type Memory = ();

    fn hear(detector: &mut Detector, heard: &Heard<'_>, actions: &mut Vec<Action>) {
        if let Signal::OverLimit(event, head) = heard.what
            && event.bucket == LimitKind::Requests as u8
        {
            detector.flooded(event, head, actions);
        }
    }
}
