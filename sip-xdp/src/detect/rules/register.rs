//! `register`: a flood of REGISTER requests by one sender. [`super::volume`] finds the sender.

use sip_xdp_common::limits::gcra::LimitKind;

use super::super::{Action, Detector};
use super::rule::{BanKind, Heard, Rule, Signal};

threshold! {
    /// `[detect.register]`.
    count = 100, seconds = 60
}

pub(in super::super) struct Register;

impl Rule for Register {
    const NAME: &'static str = "register";
    const COMMENT: &'static str = "A flood of REGISTER requests by one sender.";
    const KINDS: &'static [BanKind] = &[BanKind {
        name: "register",
        evidence: "REGISTER requests over the limit `count` in `per`, half of them from one port, \
                   with one Call-ID or for one user",
        limits: "unknown sources only; not while the registrar's responses are unseen",
    }];

    type Settings = Settings;
    type Counts = ();
    type Memory = ();

    fn hear(detector: &mut Detector, heard: &Heard<'_>, actions: &mut Vec<Action>) {
        if let Signal::OverLimit(event, head) = heard.what
            && event.bucket == LimitKind::Register as u8
        {
            detector.flooded(event, head, actions);
        }
    }
}
