//! Each target on its seeds, on mutations of them, and on any bytes; `SIP_XDP_CORPUS` adds inputs.

use std::path::PathBuf;

use crate::{TARGETS, seeds};

/// Number of inputs per target besides the seeds; scripts take longer than packets.
const INPUTS: usize = 600;
const SCRIPTS: usize = 100;

/// A small generator (splitmix64) for reproducible inputs.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// Changes an input in one to four places.
fn mutate(input: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        let at = random.below(input.len() + 1);
        match random.below(5) {
            0 if at < input.len() => input[at] ^= 1 << random.below(8),
            1 if at < input.len() => input[at] = random.next() as u8,
            2 => input.truncate(at),
            3 => {
                let end = (at + random.below(40)).min(input.len());
                let part = input[at..end].to_vec();
                let to = random.below(input.len() + 1);
                input.splice(to..to, part);
            }
            _ => {
                let byte = b"\r\n\0 \t<>@;,=\"%+:\xff"[random.below(16)];
                input.insert(at, byte);
            }
        }
    }
    input.truncate(seeds::MAX_LENGTH);
}

fn try_target(name: &str, inputs: usize) {
    let (_, run) =
        TARGETS.into_iter().find(|(target, _)| *target == name).expect("a target of this name");
    let corpus = std::env::var_os("SIP_XDP_CORPUS").map(PathBuf::from);
    let seeds = seeds::of(name, corpus.as_deref()).expect("seeds");
    assert!(seeds.len() >= 16, "{} seeds", seeds.len());
    seeds.iter().for_each(|seed| run(seed));
    run(&[]);
    let mut random = Random(1);
    for number in 0..inputs {
        let input = if number % 4 == 0 {
            (0..random.below(300)).map(|_| random.next() as u8).collect()
        } else {
            let mut input = seeds[random.below(seeds.len())].clone();
            mutate(&mut input, &mut random);
            input
        };
        run(&input);
    }
}

#[test]
fn message() {
    try_target("message", INPUTS);
}

#[test]
fn stream() {
    try_target("stream", INPUTS);
}

#[test]
fn egress() {
    try_target("egress", INPUTS);
}

#[test]
fn ingress() {
    try_target("ingress", INPUTS);
}

#[test]
fn detector() {
    try_target("detector", SCRIPTS);
}
