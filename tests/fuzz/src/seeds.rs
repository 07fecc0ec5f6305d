//! Seed inputs: messages and packets of every kind that the parsers know, and scripts of known
//! attacks.

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::frames::{Ip, ethernet, pppoe, udp, vlan};
use crate::ingress::ANSWERS;
use crate::script::{Deed, Step};
use crate::site::Interface;

/// The longest input.
pub const MAX_LENGTH: usize = 2_048;

/// A REGISTER with every parsed header, as in the daemon's own tests.
const GUESS: &str = "REGISTER sip:198.51.100.1 SIP/2.0\r\n\
    Via: SIP/2.0/UDP 192.0.2.66:5060;branch=z9hG4bK-1;rport, SIP/2.0/UDP 10.0.0.1;branch=other\r\n\
    From: \"a;tag=no\" <sip:100@198.51.100.1;x=y>;tag=31303001\r\nTo: \
                     <sip:%31%30%30:x@198.51.100.1>\r\n\
    Call-ID: c1@host\r\nCSeq: 2 REGISTER\r\nUser-Agent: friendly-scanner\r\nContact: \
                     <sip:100@192.0.2.66>;expires=60, \
    \"x, y\" <sip:100@192.0.2.67>;expires=3600\r\nExpires: 20\r\n\
    Authorization: Digest username=\"100\",realm=\"a, \
                     b\",nonce=\"abc\\\"d\",uri=\"sip:x\",response=\"0f\",algorithm=MD5\r\n\
    Proxy-Authorization: Digest username=\"200\", nonce=n2, response=\"1f\"\r\nContent-Length: \
                     0\r\n\r\n";

/// Variants of it, as in the repository's tests.
const OTHERS: [&str; 16] = [
    "SIP/2.0 401 Unauthorized\r\nv: SIP/2.0/UDP h;branch=z9hG4bK1\r\nf: <sip:a@b>;tag=1\r\nt: \
     <sip:a@b>;tag=2\r\ni: c\r\n\
     CSeq: 1 REGISTER\r\nWWW-Authenticate: Digest realm=\"a\", nonce=\"n1\", stale=TRUE\r\n\r\n",
    "SIP/2.0 200 OK\r\nVia: x\r\nCSeq: 1 INVITE\r\nm: <sip:a@b>;expires=60,<sip:c@d>\r\n\r\n",
    "\r\n\0\0 \t\r\nREGISTER  sip:a SIP/2.0\r\nTo:\r\n \
     <tel:+4912345;phone-context=x>\r\nCall-ID\t:\r\n\tc\r\n\r\n",
    "INVITE <sip:user@example.com> SIP/2.0\nFrom: \"Bob <sip:eve@a>\" \
     <sips:%61lice:secret@a;x=y>;tag=1\n\n",
    "!interesting-Method0123456789_*+`.%indeed'~ sip:1_unusual.URI~(to-be!sure)@example.com \
     SIP/2.0\r\n\r\n",
    "OPTIONS nobodyKnowsThisScheme:totallyopaquecontent SIP/2.0\r\n\r\n",
    "INVITE sip:user@example.com; lr SIP/2.0\r\n\r\n",
    "SIP/2.0 4294967301 better not break the receiver\r\n\r\n",
    "SUBSCRIBE sip:100@a SIP/2.0\r\nEvent: reg\r\n\r\n",
    "NOTIFY sip:100@a SIP/2.0\r\n\r\n",
    "PUBLISH sip:100@a SIP/2.0\r\n\r\n",
    "MESSAGE sip:100@a SIP/2.0\r\n\r\nhello",
    "ACK sip:100@a SIP/2.0\r\n\r\n",
    "BYE sip:100@a SIP/2.0\r\n\r\n",
    "CANCEL sip:100@a SIP/2.0\r\n\r\n",
    "\r\n\r\n",
];

/// The seed inputs of a target: those of the repository, and those of `corpus` (`rfc4475/*.dat` and
/// `pcap/*.pcap`).
pub fn of(target: &str, corpus: Option<&Path>) -> io::Result<Vec<Vec<u8>>> {
    let mut seeds: Vec<Vec<u8>> = match target {
        "message" => messages(corpus)?,
        "stream" => streams(corpus)?,
        "egress" => {
            let packets = packets(corpus)?;
            packets.into_iter().map(|(site, packet)| [&[site][..], &packet].concat()).collect()
        }
        "ingress" => {
            let packets = packets(corpus)?.into_iter().enumerate();
            packets.map(|(n, (site, packet))| [&answers(n, site)[..], &packet].concat()).collect()
        }
        "detector" => scripts(),
        _ => Vec::new(),
    };
    seeds.iter_mut().for_each(|seed| seed.truncate(MAX_LENGTH));
    Ok(seeds)
}

/// Connections: a script of how they are sent, and some messages one behind the other.
fn streams(corpus: Option<&Path>) -> io::Result<Vec<Vec<u8>>> {
    let all = messages(corpus)?;
    let scripts = (0_u8..).map(|number| [number; 16]);
    let streams = scripts.zip(all.windows(2)).map(|(script, two)| {
        [&script[..], &two[0], b"\r\n\r\n", &two[1], b"?\n", &two[0]].concat()
    });
    Ok(streams.collect())
}

/// SIP messages.
fn messages(corpus: Option<&Path>) -> io::Result<Vec<Vec<u8>>> {
    let own = [GUESS].into_iter().chain(OTHERS).map(|text| text.as_bytes().to_vec());
    let mut messages: Vec<_> = own.collect();
    for file in files(corpus, "rfc4475", "dat")? {
        messages.push(fs::read(file)?);
    }
    for (_, packet) in captured(corpus)? {
        messages.extend(packet.get(42..).map(<[u8]>::to_vec));
    }
    Ok(messages)
}

/// Packets that carry them, in every supported encapsulation, each with its interface.
fn packets(corpus: Option<&Path>) -> io::Result<Vec<(u8, Vec<u8>)>> {
    let (v4, v6) = (Ip::v4(), Ip::v6());
    let (to_us, from_us) = (
        |payload: &[u8]| udp(40_000, 5_060, payload),
        |payload: &[u8]| udp(5_060, 40_000, payload),
    );
    let mut packets = Vec::new();
    for message in messages(corpus)? {
        packets.push((Interface::ETHERNET, v4.frame(&to_us(&message))));
        packets.push((Interface::ETHERNET, v4.frame(&from_us(&message))));
    }
    let register = udp(5_061, 5_060, GUESS.as_bytes());
    let raw = Interface::RAW_IP;
    packets.extend([(raw, v4.build(&register)), (raw, v6.build(&register))]);
    for ip in [
        Ip { options: 24, ..v4.clone() },
        Ip { fragment: 0x2000, ..v4.clone() },
        Ip { fragment: 0x2005, ..v4.clone() },
        Ip { protocol: 6, ..v4.clone() },
        Ip { protocol: 1, ..v4.clone() },
        Ip { extensions: vec![(0, vec![0; 7]), (60, [&[1][..], &[0; 14]].concat())], ..v6.clone() },
        Ip { extensions: vec![(60, vec![0; 7]); 8], ..v6.clone() },
        Ip { extensions: vec![(60, vec![0; 7]); 9], ..v6.clone() },
        Ip {
            extensions: vec![(44, vec![0, 0, 1, 0, 0, 0x12, 0x34]), (51, vec![1; 11])],
            ..v6.clone()
        },
        Ip { extensions: vec![(44, vec![0, 0, 8, 0, 0, 0x12, 0x34])], ..v6.clone() },
    ] {
        packets.push((Interface::ETHERNET, ip.frame(&register)));
    }
    for frame in [
        ethernet(0x88a8, vlan(0x8100, vlan(0x0800, v4.build(&register)))),
        ethernet(0x8100, vlan(0x8864, pppoe(0x57, v6.build(&register)))),
        ethernet(0x8864, pppoe(0x21, v4.build(&register))),
        ethernet(0x0806, vec![0; 28]),
    ] {
        packets.push((Interface::ETHERNET, frame));
    }
    packets.extend(captured(corpus)?);
    Ok(packets)
}

/// The tables, different for each packet.
fn answers(number: usize, site: u8) -> [u8; ANSWERS] {
    let bits = [0_u16, 1, 4, 0x14, 0x84, 0x80, 0x100, 0x20, 0x44, 0xc4][number % 10].to_le_bytes();
    let policy = [0, 16, 8, 24][number / 10 % 4];
    [site | policy, number as u8, bits[0], bits[1]]
}

/// Frames of Ethernet captures.
fn captured(corpus: Option<&Path>) -> io::Result<Vec<(u8, Vec<u8>)>> {
    let mut frames = Vec::new();
    for file in files(corpus, "pcap", "pcap")? {
        let bytes = fs::read(file)?;
        let is_known = bytes.starts_with(&[0xd4, 0xc3, 0xb2, 0xa1]) && bytes.get(20) == Some(&1);
        let mut rest = bytes.get(24..).filter(|_| is_known).unwrap_or_default();
        // Time, captured length, original length. Some frames of each suffice.
        for _ in 0..40 {
            let Some((head, behind)) = rest.split_first_chunk::<16>() else { break };
            let length = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
            let Some((frame, behind)) = behind.split_at_checked(length) else { break };
            frames.push((Interface::ETHERNET, frame.to_vec()));
            rest = behind;
        }
    }
    Ok(frames)
}

fn files(corpus: Option<&Path>, folder: &str, extension: &str) -> io::Result<Vec<PathBuf>> {
    let Some(corpus) = corpus else {
        return Ok(Vec::new());
    };
    let entries = fs::read_dir(corpus.join(folder))?.collect::<io::Result<Vec<_>>>()?;
    let mut files: Vec<_> = entries.into_iter().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|found| found == extension));
    files.sort();
    Ok(files)
}

/// Scripts of traffic of phones and known tools.
fn scripts() -> Vec<Vec<u8>> {
    let plain = Step::plain;
    let second = 11;
    let register = Step { expires: 2, ..plain(Deed::Register) };
    let guess = Step { source: 1, times: 5, pause: second, ..plain(Deed::Guess) };
    let exchange = Step { times: 5, pause: second, ..plain(Deed::Exchange) };
    let scanner = Step { agent: 1, method: 2, ..exchange };
    let tick = Step { times: 2, pause: 14, ..plain(Deed::Tick) };
    let asked = Step { method: 2, ..plain(Deed::PendingRequest) };
    let scripts: [&[Step]; 16] = [
        &[register, Step { pause: 20, ..tick }, register, Step { expires: 1, ..register }],
        &[guess, tick],
        &[Step { pause: 16, ..guess }, tick],
        &[register, Step { source: 0, port: 1, user: 2, target: 2, ..guess }, tick],
        &[register, Step { source: 0, users_differ: true, ports_differ: true, ..guess }, tick],
        &[Step { status: 4, users_differ: true, ..exchange }, tick],
        &[Step { status: 1, users_differ: true, ..exchange }, tick, tick],
        &[Step { status: 4, method: 1, target: 4, users_differ: true, ..exchange }, tick],
        &[scanner, tick],
        &[Step { times: 0, ..scanner }, register, Step { source: 0, times: 0, ..guess }, tick],
        &[
            Step { sources_differ: true, times: 3, target: 3, ..guess },
            register,
            Step { source: 0, target: 3, ..guess },
            tick,
        ],
        &[
            asked,
            Step { anew: false, ..plain(Deed::Response) },
            Step { status: 4, users_differ: true, ..exchange },
            tick,
        ],
        &[Step { times: 6, expires: 1, pause: 6, ..plain(Deed::Limited) }],
        &[
            Step { times: 7, pause: 6, ..plain(Deed::Limited) },
            plain(Deed::Storm),
            plain(Deed::Forget),
        ],
        &[
            register,
            Step { pause: 27, ..plain(Deed::Tidy) },
            plain(Deed::Restart),
            Step { source: 0, ..guess },
            tick,
        ],
        &[
            register,
            Step { sources_differ: true, ..guess },
            plain(Deed::Configure),
            plain(Deed::Conflict),
            tick,
        ],
    ];
    let bytes = |steps: &[Step]| steps.iter().flat_map(Step::bytes).collect::<Vec<u8>>();
    let mut seeds: Vec<_> =
        scripts.into_iter().map(|steps| [&[1][..], &bytes(steps)].concat()).collect();
    seeds.push(
        [&[0][..], &bytes(&[Step { method: 2, ..plain(Deed::Raw) }]), GUESS.as_bytes()].concat(),
    );
    seeds
}
