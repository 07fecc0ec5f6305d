//! Any split, order and repetition of a stream gives the same messages; nothing grows without
//! bound; and what was lost is never taken for certain.

use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;

fn request(call: usize, body: &str) -> Vec<u8> {
    let length = if call.is_multiple_of(2) { "Content-Length" } else { "l" };
    let head = format!(
        "REGISTER sip:a SIP/2.0\r\nCall-ID: {call}\r\nCSeq: 1 REGISTER\r\n{length}: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body.as_bytes()].concat()
}

fn answer(call: usize) -> Vec<u8> {
    format!("SIP/2.0 401 Unauthorized\r\nCall-ID: {call}\r\nContent-Length: 0\r\n\r\n").into()
}

/// One side of a connection, which counts its bytes.
struct Wire {
    peer: IpKey,
    time: u64,
    /// Next numbers of both sides.
    numbers: [u32; 2],
}

impl Wire {
    fn new(peer: u32, numbers: [u32; 2]) -> Self {
        Self { peer: IpKey::v4(peer), time: SECOND, numbers }
    }

    fn segment<'a>(&self, direction: Direction, sequence: u32, payload: &'a [u8]) -> Segment<'a> {
        Segment {
            time: self.time,
            peer: self.peer,
            peer_port: 40_000,
            local: IpKey::v4(1),
            local_port: 5_060,
            direction,
            sequence,
            acknowledges: Some(self.numbers[1 - direction as usize]),
            syn: false,
            fin: false,
            rst: false,
            payload,
            length: payload.len(),
            is_fragment: false,
        }
    }

    /// SYN, SYN/ACK, ACK.
    fn open(&self, streams: &mut Streams) {
        let [ours, theirs] =
            [Direction::Out, Direction::In].map(|side| self.numbers[side as usize].wrapping_sub(1));
        let syn =
            Segment { syn: true, acknowledges: None, ..self.segment(Direction::In, theirs, &[]) };
        let answer = Segment { syn: true, ..self.segment(Direction::Out, ours, &[]) };
        for segment in [syn, answer, self.segment(Direction::In, self.numbers[0], &[])] {
            streams.take(&segment, &mut |_| panic!("a message without bytes"));
        }
    }

    /// Sends bytes, and returns the messages that end with them.
    fn send(&mut self, streams: &mut Streams, direction: Direction, bytes: &[u8]) -> Vec<Told> {
        let sequence = self.numbers[direction as usize];
        let told = collect(streams, &self.segment(direction, sequence, bytes));
        self.numbers[direction as usize] = sequence.wrapping_add(bytes.len() as u32);
        told
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    head: Vec<u8>,
    length: usize,
    is_whole: bool,
    is_certain: bool,
    is_proven: bool,
}

fn collect(streams: &mut Streams, segment: &Segment<'_>) -> Vec<Told> {
    let mut told = Vec::new();
    streams.take(segment, &mut |message| {
        assert_eq!(message.direction, segment.direction);
        let Message { bytes, length, is_whole, is_certain, is_proven, .. } = *message;
        told.push(Told { head: bytes.to_vec(), length, is_whole, is_certain, is_proven });
    });
    told
}

fn call(told: &Told) -> String {
    let (_, value) = headers(&told.head).find(|(name, _)| *name == b"Call-ID").unwrap();
    String::from_utf8_lossy(value).into_owned()
}

fn calls(told: &[Told]) -> Vec<String> {
    told.iter().map(call).collect()
}

/// TLS and WebSocket are counted by connection, and nothing is read or kept of them; what only
/// looks so behind a message, or in a stranger's name, is not.
#[test]
fn other_protocols_are_counted_and_not_read() {
    let hello = [&TLS_HANDSHAKE[..], &[1, 0, 200], &[7; 200]].concat();
    let upgrade = b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n".to_vec();
    let switching = b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec();
    let mut streams = Streams::default();
    for (peer, first, second) in
        [(1, &hello, &hello), (2, &upgrade, &switching), (3, &hello, &hello)]
    {
        let mut wire = Wire::new(peer, [100, 200]);
        wire.open(&mut streams);
        assert!(wire.send(&mut streams, Direction::In, first).is_empty());
        assert!(wire.send(&mut streams, Direction::Out, second).is_empty());
        for _ in 0..10 {
            assert!(wire.send(&mut streams, Direction::In, &request(1, "")).is_empty());
            assert!(wire.send(&mut streams, Direction::Out, &answer(1)).is_empty());
        }
    }
    let counts = streams.counts();
    assert_eq!((counts.tls, counts.websocket, counts.messages, counts.garbage), (2, 1, 0, 0));
    assert_eq!(streams.bytes(), 3 * size_of::<Connection>(), "nothing is kept");
    let mut wire = Wire::new(9, [100, 200]);
    wire.open(&mut streams);
    assert_eq!(wire.send(&mut streams, Direction::In, &request(4, "")).len(), 1);
    wire.send(&mut streams, Direction::In, &hello);
    assert_eq!(wire.send(&mut streams, Direction::Out, &answer(4)).len(), 1);
    assert_eq!(streams.counts().tls, 2);
    // A server that answers in SIP has read on behind it.
    for (peer, first) in [(10, &[&hello[..], b"\r\n"].concat()), (11, &upgrade)] {
        let mut wire = Wire::new(peer, [100, 200]);
        wire.open(&mut streams);
        wire.send(&mut streams, Direction::In, first);
        assert_eq!(wire.send(&mut streams, Direction::In, &request(5, "")).len(), 1);
        assert_eq!(wire.send(&mut streams, Direction::Out, &answer(5)).len(), 1);
        assert_eq!(wire.send(&mut streams, Direction::In, &request(6, "")).len(), 1);
    }
    assert_eq!((streams.counts().tls, streams.counts().websocket), (2, 1));
}

/// What a conversation holds: several messages, keepalives, bodies, one of 64 KiB.
fn conversation() -> Vec<u8> {
    let body = "v=0\r\n\r\nREGISTER sip:no SIP/2.0\r\nCall-ID: in a body\r\n\r\n";
    [
        request(0, ""),
        b"\r\n\r\n".to_vec(),
        request(1, body),
        request(2, &"x".repeat(MAX_BODY)),
        b"\r\n".to_vec(),
        request(3, ""),
    ]
    .concat()
}

#[test]
fn messages_are_found_where_they_are() {
    let (mut streams, mut wire) = (Streams::default(), Wire::new(7, [100, u32::MAX - 50]));
    wire.open(&mut streams);
    let told = wire.send(&mut streams, Direction::In, &conversation());
    assert_eq!(calls(&told), ["0", "1", "2", "3"]);
    assert!(told.iter().all(|one| one.is_whole && one.is_certain && one.is_proven));
    assert_eq!(told[2].length, request(2, &"x".repeat(MAX_BODY)).len());
    assert!(wire.send(&mut streams, Direction::Out, &answer(0)[..20]).is_empty());
    assert_eq!(calls(&wire.send(&mut streams, Direction::Out, &answer(0)[20..])), ["0"]);
    assert_eq!(streams.counts().lost, 0);
    let kept = streams.bytes();
    assert!(kept < 2 * size_of::<Connection>(), "{kept}");
    for direction in [Direction::In, Direction::Out] {
        let last = wire.segment(direction, wire.numbers[direction as usize], &[]);
        streams.take(&Segment { fin: true, ..last }, &mut |_| {});
    }
    assert_eq!((streams.connections(), streams.bytes()), (0, 0));
}

#[test]
fn the_first_copy_of_a_byte_counts() {
    let (mut streams, wire) = (Streams::default(), Wire::new(7, [100, 200]));
    wire.open(&mut streams);
    let (real, other) = (request(10, ""), request(66, ""));
    let (a, b) = (&real[..30], &real[30..60]);
    assert!(collect(&mut streams, &wire.segment(Direction::In, 130, b)).is_empty());
    let at = |from: usize| wire.segment(Direction::In, 100 + from as u32, &other[from..]);
    assert!(collect(&mut streams, &wire.segment(Direction::In, 100, a)).is_empty());
    // The head of another message over all of it: only what is new of it counts.
    let told = collect(&mut streams, &at(0));
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].head, [a, b, &other[60..]].concat());
}

#[test]
fn what_was_lost_is_skipped_and_not_certain() {
    let (mut streams, mut wire) = (Streams::default(), Wire::new(7, [100, 200]));
    wire.open(&mut streams);
    // All but the last bytes of a message are lost, and we acknowledge what came behind.
    let (lost, next) = (request(0, ""), request(1, ""));
    wire.numbers[0] += lost.len() as u32 - 10;
    let tail = [&lost[lost.len() - 10..], &next].concat();
    assert!(wire.send(&mut streams, Direction::In, &tail).is_empty(), "it may come yet");
    let told = {
        let mut told = Vec::new();
        let ours = wire.segment(Direction::Out, wire.numbers[1], b"\r\n");
        streams.take(&ours, &mut |message| told.push((message.bytes.to_vec(), *message).0));
        told
    };
    assert_eq!(told, std::slice::from_ref(&next));
    assert_eq!(streams.counts().lost, 1);
    wire.numbers[1] += 2;
    let told = wire.send(&mut streams, Direction::In, &request(2, ""));
    assert!(!told[0].is_certain && told[0].is_proven);
    // Nobody can have hidden so much in a body.
    let long = request(3, &"x".repeat(MAX_BODY - 100));
    (0..5).for_each(|_| _ = wire.send(&mut streams, Direction::In, &long));
    assert!(wire.send(&mut streams, Direction::In, &request(4, ""))[0].is_certain);
}

#[test]
fn a_loss_within_a_body_changes_nothing() {
    let (mut streams, mut wire) = (Streams::default(), Wire::new(7, [100, 200]));
    wire.open(&mut streams);
    let long = request(0, &"x".repeat(5_000));
    // The sampler has the beginning of each packet.
    let packet = Segment { length: long.len(), ..wire.segment(Direction::In, 100, &long[..1_472]) };
    assert_eq!(calls(&collect(&mut streams, &packet)), ["0"]);
    wire.numbers[0] += long.len() as u32;
    let told = wire.send(&mut streams, Direction::In, &request(1, ""));
    assert!(told[0].is_certain, "{told:?}");
}

#[test]
fn what_was_cut_off_may_be_there_already() {
    let (mut streams, wire) = (Streams::default(), Wire::new(7, [100, 200]));
    wire.open(&mut streams);
    let long = [request(0, &"x".repeat(5_000)), request(1, "")].concat();
    // A later piece came first, and lies in what the sampler cut off of the packet.
    let piece = wire.segment(Direction::In, 100 + 3_000, &long[3_000..]);
    assert!(collect(&mut streams, &piece).is_empty());
    let packet = Segment { length: long.len(), ..wire.segment(Direction::In, 100, &long[..1_472]) };
    assert_eq!(calls(&collect(&mut streams, &packet)), ["0", "1"]);
    assert_eq!(streams.counts().lost, 1);
}

#[test]
fn garbage_is_skipped() {
    let (mut streams, mut wire) = (Streams::default(), Wire::new(7, [100, 200]));
    wire.open(&mut streams);
    let noise = [b"GET\r\n\x16\x03\x01\r\nHost: x\r\n\r\n".to_vec(), vec![0xff; 3 * MAX_LINE]];
    let all = [&noise.concat()[..], b"\nSIP/2.0\r\n", &request(1, ""), b"?\n", &request(2, "")];
    assert_eq!(calls(&wire.send(&mut streams, Direction::In, &all.concat())), ["1", "2"]);
    assert!(streams.counts().garbage > 3 * MAX_LINE as u64);
    // A body that no server takes: messages are looked for behind the head.
    let refused =
        b"MESSAGE sip:a SIP/2.0\r\nCall-ID: 3\r\nl: 99999999999999999999999\r\n\r\nxx\r\n";
    let told = wire.send(&mut streams, Direction::In, &[&refused[..], &request(4, "")].concat());
    assert_eq!(calls(&told), ["3", "4"]);
    // A head without an end.
    let endless =
        [b"OPTIONS sip:a SIP/2.0\r\nCall-ID: 5\r\n", "a: b\r\n".repeat(20_000).as_bytes()].concat();
    let told = wire.send(&mut streams, Direction::In, &endless);
    assert_eq!((told.len(), told[0].head.len(), told[0].is_whole), (1, MAX_HEAD, false));
    assert!(streams.bytes() < 4_096, "{}", streams.bytes());
}

#[test]
fn a_connection_may_have_begun_before() {
    let (mut streams, mut wire) = (Streams::default(), Wire::new(7, [100, 200]));
    let told = wire.send(&mut streams, Direction::In, &request(0, ""));
    assert!(told[0].is_certain && !told[0].is_proven, "a forger can send it");
    wire.send(&mut streams, Direction::Out, &answer(0));
    assert!(wire.send(&mut streams, Direction::In, &request(1, ""))[0].is_proven);
    // In the midst of a message.
    let mut wire = Wire::new(8, [100, 200]);
    let told =
        wire.send(&mut streams, Direction::In, &[&b"ag: x\r\n\r\n"[..], &request(2, "")].concat());
    assert_eq!(calls(&told), ["2"]);
    assert!(!told[0].is_certain);
}

#[test]
fn numbers_that_nobody_was_sent_prove_nothing() {
    let (mut streams, wire) = (Streams::default(), Wire::new(7, [100, 200]));
    let answer = Segment { syn: true, ..wire.segment(Direction::Out, 199, &[]) };
    streams.take(&answer, &mut |_| {});
    for guess in [0, 1, 199, 201, 5_000, u32::MAX] {
        let message = request(0, "");
        let forged =
            Segment { acknowledges: Some(guess), ..wire.segment(Direction::In, 100, &message) };
        let told = collect(&mut Streams::default(), &forged);
        assert!(!told[0].is_proven);
        let told = collect(&mut streams, &Segment { payload: &[], length: 0, ..forged });
        assert!(told.is_empty());
        assert_eq!(streams.unproven, 1, "{guess}");
    }
    streams.take(&wire.segment(Direction::In, 100, &[]), &mut |_| {});
    assert_eq!(streams.unproven, 0);
    // A reset needs the very number that comes next.
    for (number, left) in [(99, 1), (101, 1), (100, 0)] {
        let reset = Segment { rst: true, ..wire.segment(Direction::In, number, &[]) };
        streams.take(&reset, &mut |_| {});
        assert_eq!(streams.connections(), left);
    }
}

#[test]
fn half_open_connections_make_room_for_each_other_alone() {
    let mut streams = Streams::default();
    let mut good = Wire::new(1, [100, 200]);
    good.open(&mut streams);
    for peer in 2..10_002_u32 {
        let wire = Wire::new(peer, [100, 200]);
        let answer = Segment { syn: true, ..wire.segment(Direction::Out, 199, &[]) };
        streams.take(&answer, &mut |_| {});
        // And what no handshake came before.
        let wire = Wire::new(peer + 100_000, [100, 200]);
        streams.take(&wire.segment(Direction::In, 7, b"REGISTER "), &mut |_| {});
    }
    assert!(streams.connections() <= MAX_UNPROVEN + 1, "{}", streams.connections());
    assert!(streams.bytes() < 8 << 20, "{}", streams.bytes());
    let told = good.send(&mut streams, Direction::In, &request(0, ""));
    assert!(told[0].is_certain && told[0].is_proven);
    assert!(streams.order.iter().all(|order| order.len() <= 2 * MAX_CONNECTIONS));
}

#[test]
fn slow_connections_make_room_oldest_first() {
    let mut streams = Streams::default();
    let mut wires: Vec<Wire> = (1..10_001).map(|peer| Wire::new(peer, [100, 200])).collect();
    wires.iter().for_each(|wire| wire.open(&mut streams));
    assert_eq!(streams.connections(), MAX_CONNECTIONS);
    // One byte a second each, and some that hold all that they can.
    let message = request(0, "");
    for (second, byte) in message[..40].iter().enumerate() {
        for wire in &mut wires[2_000..] {
            wire.time = (second as u64 + 2) * SECOND;
            wire.send(&mut streams, Direction::In, &[*byte]);
        }
    }
    assert!(streams.connections() <= MAX_CONNECTIONS && streams.bytes() <= MAX_BYTES);
    let hoard = vec![b'x'; 60_000];
    for wire in &mut wires[2_000..] {
        let ahead = wire.numbers[0].wrapping_add(60_000);
        for step in 0..2 {
            let piece = wire.segment(Direction::In, ahead.wrapping_add(step * 60_001), &hoard);
            streams.take(&piece, &mut |_| {});
        }
        assert!(streams.bytes() <= MAX_BYTES, "{}", streams.bytes());
    }
    let held: usize = streams.connections.values().map(Connection::cost).sum();
    assert_eq!(held, streams.bytes(), "the sum is right");
    assert!(streams.counts().evicted > 5_000);
    streams.tidy(100 * SECOND + IDLE_NS);
    assert_eq!((streams.connections(), streams.bytes(), streams.unproven), (0, 0, 0));
}

/// Splits, reorders and repeats a stream, as networks do.
fn deliver(bytes: &[u8], cuts: &[usize], swaps: &[usize], again: &[usize]) -> Vec<Told> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    at.extend([0, bytes.len()]);
    at.sort_unstable();
    let mut parts: Vec<(usize, usize)> = at.windows(2).map(|pair| (pair[0], pair[1])).collect();
    for swap in swaps {
        let (one, other) = (swap % parts.len(), (swap / 7) % parts.len());
        parts.swap(one, other);
    }
    for again in again {
        // Sent again, and a little more or less of it.
        let (from, to) = parts[again % parts.len()];
        let (from, to) = (from.saturating_sub(again % 5), (to + again % 11).min(bytes.len()));
        parts.insert(again % (parts.len() + 1), (from, to));
    }
    let (mut streams, wire) = (Streams::default(), Wire::new(7, [u32::MAX - 700, 200]));
    wire.open(&mut streams);
    let mut told = Vec::new();
    for (from, to) in parts {
        let sequence = wire.numbers[0].wrapping_add(from as u32);
        told.extend(collect(
            &mut streams,
            &wire.segment(Direction::In, sequence, &bytes[from..to]),
        ));
    }
    assert_eq!(streams.counts().lost, 0);
    told
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(
        std::env::var("SIP_XDP_PROBES").ok().and_then(|n| n.parse().ok()).unwrap_or(2_000)
    ))]

    #[test]
    fn any_split_order_and_repetition_gives_the_same_messages(
        bodies in prop::collection::vec((0..3_usize, 0..200_usize), 1..6),
        cuts in prop::collection::vec(any::<usize>(), 0..200),
        swaps in prop::collection::vec(any::<usize>(), 0..40),
        again in prop::collection::vec(any::<usize>(), 0..20),
    ) {
        let mut bytes = Vec::new();
        for (number, (before, body)) in bodies.iter().enumerate() {
            bytes.extend([&b""[..], b"\r\n\r\n", b"\0 \r\n"][*before]);
            bytes.extend(request(number, &"SIP/2.0 200 OK\r\n\r\n".repeat(20)[..*body]));
        }
        let whole = deliver(&bytes, &[], &[], &[]);
        prop_assert_eq!(whole.len(), bodies.len());
        prop_assert_eq!(deliver(&bytes, &cuts, &swaps, &again), whole);
    }

    #[test]
    fn any_bytes_in_any_pieces(
        bytes in prop::collection::vec(prop::sample::select(b"aSIP/2.0 \r\n:1l".to_vec()), 0..600),
        cuts in prop::collection::vec(any::<usize>(), 0..60),
        swaps in prop::collection::vec(any::<usize>(), 0..20),
        again in prop::collection::vec(any::<usize>(), 0..20),
    ) {
        let bytes = [&b"OPTIONS a SIP/2.0\r\n"[..], &bytes].concat();
        prop_assert_eq!(deliver(&bytes, &cuts, &swaps, &again), deliver(&bytes, &[], &[], &[]));
    }
}

#[test]
fn single_bytes_of_a_conversation_with_a_long_body() {
    let bytes = conversation();
    let every: Vec<usize> = (0..bytes.len()).collect();
    assert_eq!(deliver(&bytes, &every, &[], &[]), deliver(&bytes, &[], &[], &[]));
}
