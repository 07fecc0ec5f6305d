//! SIP over TCP: segments, as they are sampled on the wire, become messages (RFC 3261, section
//! 18.3). Pure: time comes with the segments, and messages are handed to whoever asks.
//!
//! Segments arrive out of order, twice, overlapping, cut off, or not at all. The first copy of a
//! byte counts, as in Linux (`tcp_data_queue`). What the receiver has acknowledged and nobody saw
//! is lost: within a body that changes nothing, elsewhere messages begin again at the next line
//! that is a start line. The same is done for garbage, and for connections that began before they
//! were watched.
//!
//! Whoever can hide bytes from the sampler can have the text of a body read as a message. So what
//! is found after a loss is not certain ([`Message::is_certain`]): as a response it accepts nobody.
//!
//! A file of more than 400 lines: reassembly and framing share the states of a loss.

use std::collections::{HashMap, VecDeque};

use sip_xdp_common::ip_key::IpKey;

use super::message::headers;

/// The most connections that are followed.
pub const MAX_CONNECTIONS: usize = 8_192;

/// The most bytes that are kept of all of them.
pub const MAX_BYTES: usize = 64 << 20;

/// The most connections whose peer has not acknowledged a number of ours: forgers make them, and
/// never take the place of others.
const MAX_UNPROVEN: usize = MAX_CONNECTIONS / 2;

/// The longest head of a message, in bytes. Servers have smaller buffers.
pub const MAX_HEAD: usize = 65_535;

/// The longest body, in bytes. Servers refuse longer ones, and what they do with the bytes behind
/// such a head differs: messages are looked for in them.
const MAX_BODY: usize = 65_535;

/// The longest start line that is looked for in garbage, in bytes.
const MAX_LINE: usize = 8_192;

/// How far ahead of the next byte a segment may be, in bytes. A forger who does not know the
/// sequence number meets such a window once in 16,384 segments.
const WINDOW: usize = 256 * 1_024;

/// The most pieces that wait for what is missing before them, in one direction.
const MAX_PIECES: usize = 256;

/// What a piece takes beside its bytes.
const PIECE_COST: usize = size_of::<Piece>() + 16;

/// After so many bytes in frame it is certain again where messages begin: longer than a body.
const CERTAIN_AFTER: usize = 4 * MAX_BODY;

/// Without an acknowledgement in sight, for how long a gap may be filled, in nanoseconds: several
/// retransmissions (RFC 6298 begins with one second).
const GAP_NS: u64 = 10_000_000_000;

/// For how long a silent connection is remembered, in nanoseconds: keepalives of RFC 5626 come
/// every two minutes, those of TCP every two hours.
const IDLE_NS: u64 = 2 * 3_600_000_000_000 + 600_000_000_000;

/// Which way a segment goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the other side to us.
    In = 0,
    /// From us to the other side.
    Out = 1,
}

/// One TCP segment.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    /// When, in nanoseconds.
    pub time: u64,
    /// The other side's address.
    pub peer: IpKey,
    /// Remote port, in host order.
    pub peer_port: u16,
    /// Our address.
    pub local: IpKey,
    /// Local port, in host order.
    pub local_port: u16,
    /// Which way it goes.
    pub direction: Direction,
    /// The sequence number of its first byte, or of its SYN.
    pub sequence: u32,
    /// The number that it acknowledges, if it does.
    pub acknowledges: Option<u32>,
    /// SYN.
    pub syn: bool,
    /// FIN.
    pub fin: bool,
    /// RST.
    pub rst: bool,
    /// The payload, or its beginning.
    pub payload: &'a [u8],
    /// How long the payload is, in bytes.
    pub length: usize,
    /// It is the first of several IP fragments; the others are not seen.
    pub is_fragment: bool,
}

/// A message, as far as its headers go; its body is counted and not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// Which way it went.
    pub direction: Direction,
    /// From its start line to the blank line behind its headers, at most [`MAX_HEAD`] bytes.
    pub bytes: &'a [u8],
    /// How long it is with its body, in bytes.
    pub length: usize,
    /// All of its headers are there.
    pub is_whole: bool,
    /// Nothing was lost before it that could have made the text of a body a message.
    pub is_certain: bool,
    /// The other side has acknowledged a number that only it was sent: the address is its own.
    pub is_proven: bool,
    /// What was not seen of the other side's messages it has hidden itself: it has sent fragments,
    /// or all that it has sent since the handshake was read.
    pub may_hide: bool,
}

/// What happened to all connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections that were seen.
    pub connections: u64,
    /// Messages.
    pub messages: u64,
    /// Connections that speak TLS, which cannot be read.
    pub tls: u64,
    /// Connections that speak WebSocket, which is not read.
    pub websocket: u64,
    /// Pieces of streams that nobody saw.
    pub lost: u64,
    /// Bytes between messages that are no message.
    pub garbage: u64,
    /// Connections that made room for others.
    pub evicted: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    peer: IpKey,
    peer_port: u16,
    local: IpKey,
    local_port: u16,
}

/// Bytes that wait for those before them.
#[derive(Debug)]
struct Piece {
    /// Their position in the stream.
    start: u64,
    bytes: Vec<u8>,
}

/// Where in the stream of messages a side is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Between messages.
    Start,
    /// In the headers. `checked`: the first line is a start line.
    Head { checked: bool },
    /// In the body, of which so many bytes are missing.
    Body { left: usize, length: usize },
    /// Looking for a start line. `fresh`: nothing was skipped yet. `inside`: of a line whose
    /// beginning was skipped.
    Search { fresh: bool, inside: bool },
}

/// Bytes in order become messages.
#[derive(Debug)]
struct Framer {
    state: State,
    /// Bytes that are not used yet.
    buffer: Vec<u8>,
    /// How many of these were searched for the end of a line, or of the headers.
    scanned: usize,
    /// The headers of the message whose body is coming.
    head: Vec<u8>,
    /// Bytes that must be in frame before it is certain again where messages begin.
    uncertain: usize,
    /// Bytes that were skipped since this was last asked.
    garbage: u64,
}

/// A message in one direction: see [`Message`].
struct Frame<'a> {
    bytes: &'a [u8],
    length: usize,
    is_whole: bool,
    is_certain: bool,
}

/// One direction of a connection.
#[derive(Debug)]
struct Side {
    /// The sequence number of the next byte, and its position, if the side has begun.
    next: Option<(u32, u64)>,
    /// The first number that may be acknowledged, and the one behind the last byte sent.
    sent: Option<(u32, u32)>,
    /// Up to which position the other side has acknowledged.
    acknowledged: u64,
    pieces: Vec<Piece>,
    /// Since when there is a gap.
    gap_since: u64,
    ended: bool,
    framer: Framer,
}

#[derive(Debug)]
struct Connection {
    id: u64,
    /// The numbers of the SYN/ACK that opened it, if that was seen.
    opened: Option<(u32, u32)>,
    sides: [Side; 2],
    is_proven: bool,
    /// Messages were read.
    is_read: bool,
    /// Another protocol is spoken: nothing is read any more.
    is_foreign: bool,
    /// What the other side seems to speak.
    seems: Option<Other>,
    /// Its bytes that belong to no message.
    garbage: u64,
    /// Fragments arrived.
    has_fragments: bool,
    /// Pieces that arrived were lost.
    has_gaps: bool,
    last: u64,
    /// What it counts for in the sum of bytes.
    cost: usize,
}

/// All connections that are followed.
#[derive(Debug, Default)]
pub struct Streams {
    connections: HashMap<Key, Connection>,
    /// Connections in the order in which they were last looked at: unproven ones, and the others.
    order: [VecDeque<(u64, u64, Key)>; 2],
    unproven: usize,
    bytes: usize,
    ids: u64,
    counts: Counts,
}

/// Where a position stands at the first byte that is seen: far enough from zero to look back.
const ORIGIN: u64 = 1 << 32;

impl Streams {
    /// How many connections are followed.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// How many bytes are kept of them.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Counts so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Whether messages of a connection between these ends (the other side's, and ours) were read.
    pub fn has_read(
        &self,
        (peer, peer_port): (IpKey, u16),
        (local, local_port): (IpKey, u16),
    ) -> bool {
        let key = Key { peer, peer_port, local, local_port };
        self.connections.get(&key).is_some_and(|connection| connection.is_read)
    }

    /// Takes a segment, and hands on the messages that end in it.
    pub fn take(&mut self, segment: &Segment<'_>, deliver: &mut dyn FnMut(&Message<'_>)) {
        let Segment { peer, peer_port, local, local_port, .. } = *segment;
        let key = Key { peer, peer_port, local, local_port };
        if segment.rst {
            self.reset(&key, segment);
            return;
        }
        if segment.syn {
            self.open(&key, segment);
            return;
        }
        if !self.connections.contains_key(&key) {
            // An acknowledgement alone says nothing of a connection that nobody knows.
            if segment.payload.is_empty() {
                return;
            }
            self.insert(key, Connection::new(segment.time, None, self.counts.evicted > 0));
        }
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        let was_proven = connection.is_proven;
        connection.take(segment, &mut self.counts, deliver);
        let cost = connection.cost();
        let (id, last, is_proven) = (connection.id, connection.last, connection.is_proven);
        self.bytes = self.bytes - connection.cost + cost;
        connection.cost = cost;
        let has_ended = connection.sides.iter().all(|side| side.ended);
        if is_proven && !was_proven {
            self.unproven -= 1;
            self.queue(id, last, key, true);
        }
        if has_ended {
            self.remove(&key);
        }
        while self.bytes > MAX_BYTES && (self.evict(false) || self.evict(true)) {}
    }

    /// Forgets connections that have been silent for long.
    pub fn tidy(&mut self, now: u64) {
        let is_idle = |one: &Connection| now.saturating_sub(one.last) >= IDLE_NS;
        let idle: Vec<Key> =
            self.connections.iter().filter(|(_, one)| is_idle(one)).map(|(key, _)| *key).collect();
        idle.iter().for_each(|key| self.remove(key));
    }

    /// A SYN alone leaves nothing behind, since anybody can send it; a SYN/ACK opens a connection.
    /// One that arrives does so only where there is none.
    fn open(&mut self, key: &Key, segment: &Segment<'_>) {
        let Some(acknowledged) = segment.acknowledges else {
            return;
        };
        let numbers = (segment.sequence, acknowledged);
        match self.connections.get(key) {
            Some(known) if known.opened == Some(numbers) => return,
            Some(_) if segment.direction == Direction::In => return,
            Some(_) => self.remove(key),
            None => {}
        }
        let mut connection = Connection::new(segment.time, Some(numbers), false);
        let (own, other) = (segment.direction as usize, 1 - segment.direction as usize);
        let first = segment.sequence.wrapping_add(1);
        connection.sides[own].begin(first, false);
        connection.sides[own].sent = Some((segment.sequence, first));
        connection.sides[other].begin(acknowledged, false);
        self.insert(*key, connection);
    }

    /// RST, which counts only with the very number that comes next (RFC 5961, section 3).
    fn reset(&mut self, key: &Key, segment: &Segment<'_>) {
        let side = |one: &Connection| one.sides[segment.direction as usize].next;
        let next = self.connections.get(key).and_then(side);
        if next.is_some_and(|(number, _)| number == segment.sequence) {
            self.remove(key);
        }
    }

    fn insert(&mut self, key: Key, mut connection: Connection) {
        if self.unproven >= MAX_UNPROVEN {
            self.evict(false);
        }
        if self.connections.len() >= MAX_CONNECTIONS {
            let _ = self.evict(false) || self.evict(true);
        }
        self.ids += 1;
        self.counts.connections += 1;
        (connection.id, connection.cost) = (self.ids, connection.cost());
        self.bytes += connection.cost;
        self.unproven += 1;
        self.queue(connection.id, connection.last, key, false);
        self.connections.insert(key, connection);
    }

    fn remove(&mut self, key: &Key) {
        if let Some(gone) = self.connections.remove(key) {
            self.bytes -= gone.cost;
            self.unproven -= usize::from(!gone.is_proven);
        }
    }

    fn queue(&mut self, id: u64, last: u64, key: Key, is_proven: bool) {
        let connections = &self.connections;
        let order = &mut self.order[usize::from(is_proven)];
        if order.len() >= 2 * MAX_CONNECTIONS {
            let is_there = |id: u64, key: &Key| {
                connections.get(key).is_some_and(|one| one.id == id && one.is_proven == is_proven)
            };
            order.retain(|(_, id, key)| is_there(*id, key));
        }
        order.push_back((last, id, key));
    }

    /// Forgets the one that was silent for longest. Returns whether there was one.
    fn evict(&mut self, is_proven: bool) -> bool {
        while let Some((last, id, key)) = self.order[usize::from(is_proven)].pop_front() {
            match self.connections.get(&key) {
                Some(one) if one.id == id && one.is_proven == is_proven => {
                    if one.last > last {
                        let last = one.last;
                        self.order[usize::from(is_proven)].push_back((last, id, key));
                        continue;
                    }
                    self.remove(&key);
                    self.counts.evicted += 1;
                    return true;
                }
                _ => {}
            }
        }
        false
    }
}

impl Connection {
    fn new(time: u64, opened: Option<(u32, u32)>, is_late: bool) -> Self {
        // What was evicted may come back at a moment that its peer has chosen.
        let side = || Side::new(is_late);
        Self {
            id: 0,
            opened,
            sides: [side(), side()],
            is_proven: false,
            is_read: false,
            is_foreign: false,
            seems: None,
            garbage: 0,
            has_fragments: false,
            has_gaps: false,
            last: time,
            cost: 0,
        }
    }

    fn cost(&self) -> usize {
        let of = |side: &Side| {
            let pieces: usize =
                side.pieces.iter().map(|piece| piece.bytes.capacity() + PIECE_COST).sum();
            pieces + side.framer.buffer.capacity() + side.framer.head.capacity()
        };
        size_of::<Self>() + self.sides.iter().map(of).sum::<usize>()
    }

    /// Whether another protocol is spoken: the first bytes of both sides are those of TLS or
    /// WebSocket, and no message was read. What the other side alone sends may look like anything,
    /// and servers go on with SIP behind it.
    fn is_other_protocol(&mut self, segment: &Segment<'_>, counts: &mut Counts) -> bool {
        let is_first = self.sides[segment.direction as usize].is_at(segment.sequence);
        if !is_first || !self.is_proven || self.is_read || segment.payload.is_empty() {
            return false;
        }
        let payload = segment.payload;
        if segment.direction == Direction::In {
            self.seems = if payload.starts_with(&TLS_HANDSHAKE) {
                Some(Other::Tls)
            } else {
                payload.starts_with(WEBSOCKET).then_some(Other::WebSocket)
            };
            return false;
        }
        match self.seems.take() {
            Some(Other::Tls) if is_tls_record(payload) => counts.tls += 1,
            Some(Other::WebSocket) if payload.starts_with(SWITCHING) => counts.websocket += 1,
            _ => return false,
        }
        self.is_foreign = true;
        counts.garbage = counts.garbage.saturating_sub(self.garbage);
        self.sides.iter_mut().for_each(Side::clear);
        true
    }

    /// Whether all was read that has arrived since the handshake, up to the number that a segment
    /// of ours acknowledges.
    fn is_all_read(&self, segment: &Segment<'_>) -> bool {
        let next = self.sides[Direction::In as usize].next.map(|(number, _)| number);
        let (Some(next), Some(acknowledged)) = (next, segment.acknowledges) else {
            return false;
        };
        let is_unread = (acknowledged.wrapping_sub(next) as i32) > 0;
        let is_ours = segment.direction == Direction::Out;
        self.opened.is_some() && !self.has_gaps && is_ours && !is_unread
    }

    fn take(
        &mut self,
        segment: &Segment<'_>,
        counts: &mut Counts,
        deliver: &mut dyn FnMut(&Message<'_>),
    ) {
        self.last = self.last.max(segment.time);
        let (own, other) = (segment.direction as usize, 1 - segment.direction as usize);
        if let Some(number) = segment.acknowledges {
            let is_real = self.sides[other].note_acknowledged(number);
            self.is_proven |= is_real && segment.direction == Direction::In;
        }
        self.has_fragments |= segment.is_fragment && segment.direction == Direction::In;
        if self.is_foreign || self.is_other_protocol(segment, counts) {
            self.sides[own].ended |= segment.fin;
            return;
        }
        let (is_proven, may_hide) =
            (self.is_proven, self.has_fragments || self.is_all_read(segment));
        for (at, direction) in [(own, segment.direction), (other, opposite(segment.direction))] {
            let side = &mut self.sides[at];
            let mut hand_on = |frame: Frame<'_>| {
                if frame.bytes.starts_with(WEBSOCKET) {
                    return;
                }
                counts.messages += 1;
                self.is_read = true;
                let Frame { bytes, length, is_whole, is_certain } = frame;
                deliver(&Message {
                    direction,
                    bytes,
                    length,
                    is_whole,
                    is_certain,
                    is_proven,
                    may_hide,
                });
            };
            let mut lost = 0;
            if at == own {
                lost += side.take(segment, &mut hand_on);
            }
            lost += side.skip_lost(segment.time, &mut hand_on);
            counts.lost += lost;
            self.has_gaps |= lost > 0 && direction == Direction::In;
            let garbage = std::mem::take(&mut side.framer.garbage);
            counts.garbage += garbage;
            self.garbage += garbage;
        }
    }
}

/// The first bytes of a TLS ClientHello: a handshake record of a version 3.x (RFC 8446, section
/// 5.1).
const TLS_HANDSHAKE: [u8; 2] = [22, 3];

/// Types of TLS records, from a change of the cipher to data (RFC 8446, section 5.1).
const TLS_RECORDS: std::ops::RangeInclusive<u8> = 20..=23;

/// Whether bytes begin a record of TLS 1.0 to 1.3, which all say 3 for their major version.
fn is_tls_record(bytes: &[u8]) -> bool {
    matches!(bytes, [kind, 3, ..] if TLS_RECORDS.contains(kind))
}

/// How the answer begins that opens a WebSocket (RFC 6455, section 4.2.2).
const SWITCHING: &[u8] = b"HTTP/1.1 101";

/// Protocols that are not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Other {
    Tls,
    WebSocket,
}

/// How the request begins that opens a WebSocket (RFC 6455, section 4.1).
const WEBSOCKET: &[u8] = b"GET /";

const fn opposite(direction: Direction) -> Direction {
    match direction {
        Direction::In => Direction::Out,
        Direction::Out => Direction::In,
    }
}

impl Side {
    fn new(is_late: bool) -> Self {
        Self {
            next: None,
            sent: None,
            acknowledged: 0,
            pieces: Vec::new(),
            gap_since: 0,
            ended: false,
            framer: Framer::new(is_late),
        }
    }

    /// Begins at a number; `is_late`: in the midst of things.
    fn begin(&mut self, number: u32, is_late: bool) {
        self.next = Some((number, ORIGIN));
        if !is_late {
            self.framer.state = State::Start;
            self.framer.uncertain = 0;
        }
    }

    /// Whether a segment with this number has the very first byte.
    fn is_at(&self, number: u32) -> bool {
        self.position(number) == Some(ORIGIN)
    }

    /// Drops what is kept.
    fn clear(&mut self) {
        self.pieces = Vec::new();
        self.framer = Framer::new(false);
    }

    /// The position of a number, if the side has begun.
    fn position(&self, number: u32) -> Option<u64> {
        let (next, position) = self.next?;
        let ahead = i64::from(number.wrapping_sub(next).cast_signed());
        position.checked_add_signed(ahead)
    }

    /// Notes what the other side acknowledges, if it was sent. Returns whether only who receives
    /// what this side sends can know the number.
    fn note_acknowledged(&mut self, number: u32) -> bool {
        let Some((first, end)) = self.sent else {
            return false;
        };
        let ahead = number.wrapping_sub(first);
        if ahead == 0 || ahead > end.wrapping_sub(first) {
            return false;
        }
        if let Some(position) = self.position(number) {
            self.acknowledged = self.acknowledged.max(position);
        }
        true
    }

    /// Takes a segment. Returns how many pieces were lost.
    fn take(&mut self, segment: &Segment<'_>, deliver: &mut dyn FnMut(Frame<'_>)) -> u64 {
        let Segment { sequence, payload, length, .. } = *segment;
        if self.next.is_none() {
            self.begin(sequence, true);
        }
        let Some(start) = self.position(sequence) else {
            return 0;
        };
        let position = self.next.map_or(0, |(_, position)| position);
        let end = start + length as u64;
        if end > position + WINDOW as u64 {
            return 0;
        }
        self.note_sent(sequence, length + usize::from(segment.fin));
        if self.pieces.is_empty() {
            self.gap_since = segment.time;
        }
        self.insert(start, payload);
        self.drain(segment.time, deliver);
        let mut lost = 0;
        let is_cut = payload.len() < length;
        // What was cut off is lost, but for what came in other segments.
        while let Some((_, position)) = self.next
            && is_cut
            && (start + payload.len() as u64..end).contains(&position)
        {
            let known = self.pieces.first().map_or(end, |piece| piece.start.min(end));
            self.lose((known - position) as usize, deliver);
            self.drain(segment.time, deliver);
            lost += 1;
        }
        self.ended |= segment.fin && self.next.is_some_and(|(_, position)| position >= end);
        lost
    }

    fn note_sent(&mut self, sequence: u32, length: usize) {
        let after = sequence.wrapping_add(length as u32);
        let (first, end) = self.sent.unwrap_or((sequence, sequence));
        let end = if after.wrapping_sub(end).cast_signed() > 0 { after } else { end };
        // What was sent long ago is acknowledged.
        let is_long = end.wrapping_sub(first) as usize > 2 * WINDOW;
        let first = if is_long { end.wrapping_sub(WINDOW as u32) } else { first };
        self.sent = Some((first, end));
    }

    /// Keeps bytes where none are yet.
    fn insert(&mut self, start: u64, payload: &[u8]) {
        let position = self.next.map_or(0, |(_, position)| position);
        let skipped = position.saturating_sub(start).min(payload.len() as u64) as usize;
        let (mut start, mut rest) = (start + skipped as u64, &payload[skipped..]);
        let mut at = self.pieces.partition_point(|piece| piece.end() <= start);
        while !rest.is_empty() {
            let Some(piece) = self.pieces.get(at) else {
                self.keep(at, start, rest);
                break;
            };
            let free = piece.start.saturating_sub(start).min(rest.len() as u64) as usize;
            let covered = piece.end();
            if free > 0 {
                at += usize::from(self.keep(at, start, &rest[..free]));
            }
            // What the piece covers was there first.
            let skipped = (covered.max(start) - start).min(rest.len() as u64) as usize;
            (start, rest) = (start + skipped as u64, &rest[skipped..]);
            at += 1;
        }
    }

    /// Keeps a piece, as a part of the one before it if that ends there. Returns whether there is
    /// one more.
    fn keep(&mut self, at: usize, start: u64, bytes: &[u8]) -> bool {
        if let Some(before) = at.checked_sub(1).and_then(|at| self.pieces.get_mut(at))
            && before.end() == start
        {
            before.bytes.extend_from_slice(bytes);
            return false;
        }
        self.pieces.insert(at, Piece { start, bytes: bytes.to_vec() });
        true
    }

    /// Hands on what is in order.
    fn drain(&mut self, now: u64, deliver: &mut dyn FnMut(Frame<'_>)) {
        let Some((mut number, mut position)) = self.next else {
            return;
        };
        let in_order = self
            .pieces
            .iter()
            .scan(position, |end, piece| {
                let is_next = piece.start == *end;
                *end = piece.end();
                is_next.then_some(())
            })
            .count();
        for piece in self.pieces.drain(..in_order) {
            position += piece.bytes.len() as u64;
            number = number.wrapping_add(piece.bytes.len() as u32);
            self.framer.feed(&piece.bytes, deliver);
        }
        if in_order > 0 {
            self.gap_since = now;
        }
        self.next = Some((number, position));
    }

    /// Goes on behind what is lost. Returns how many pieces were.
    fn skip_lost(&mut self, now: u64, deliver: &mut dyn FnMut(Frame<'_>)) -> u64 {
        let mut lost = 0;
        while let (Some(first), Some((_, position))) = (self.pieces.first(), self.next) {
            let is_lost = self.acknowledged >= first.start
                || self.pieces.len() > MAX_PIECES
                || now.saturating_sub(self.gap_since) >= GAP_NS;
            if !is_lost {
                break;
            }
            self.lose((first.start - position) as usize, deliver);
            self.drain(now, deliver);
            lost += 1;
        }
        lost
    }

    /// Notes that so many bytes are lost.
    fn lose(&mut self, count: usize, deliver: &mut dyn FnMut(Frame<'_>)) {
        if let Some((number, position)) = self.next {
            let number = number.wrapping_add(count as u32);
            self.next = Some((number, position + count as u64));
        }
        self.framer.lose(count, deliver);
    }
}

impl Piece {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

impl Framer {
    fn new(is_late: bool) -> Self {
        // In the midst of things, unless a SYN/ACK says otherwise.
        Self {
            state: State::Search { fresh: !is_late, inside: false },
            buffer: Vec::new(),
            scanned: 0,
            head: Vec::new(),
            uncertain: CERTAIN_AFTER,
            garbage: 0,
        }
    }

    /// Bytes of the stream.
    fn feed(&mut self, bytes: &[u8], deliver: &mut dyn FnMut(Frame<'_>)) {
        self.buffer.extend_from_slice(bytes);
        let mut used = 0;
        while self.step(&mut used, deliver) {}
        if used == self.buffer.len() {
            self.buffer = Vec::new();
        } else {
            self.buffer.drain(..used);
        }
    }

    /// Bytes of the stream that nobody saw.
    fn lose(&mut self, count: usize, deliver: &mut dyn FnMut(Frame<'_>)) {
        match self.state {
            State::Body { left, length } if count <= left => {
                self.state = State::Body { left: left - count, length };
                self.feed(&[], deliver);
            }
            _ => {
                self.garbage += self.buffer.len() as u64;
                self.buffer = Vec::new();
                self.search();
            }
        }
    }

    fn search(&mut self) {
        (self.head, self.scanned) = (Vec::new(), 0);
        self.state = State::Search { fresh: false, inside: false };
        self.uncertain = CERTAIN_AFTER;
    }

    fn deliver(
        &mut self,
        bytes: &[u8],
        length: usize,
        is_whole: bool,
        deliver: &mut dyn FnMut(Frame<'_>),
    ) {
        let is_certain = self.uncertain == 0;
        deliver(Frame { bytes, length, is_whole, is_certain });
        self.uncertain = self.uncertain.saturating_sub(length);
    }

    /// Uses some of the buffer. Returns whether there may be more to do.
    fn step(&mut self, used: &mut usize, deliver: &mut dyn FnMut(Frame<'_>)) -> bool {
        let buffer = std::mem::take(&mut self.buffer);
        let goes_on = self.step_in(&buffer, used, deliver);
        self.buffer = buffer;
        goes_on
    }

    fn step_in(
        &mut self,
        buffer: &[u8],
        used: &mut usize,
        deliver: &mut dyn FnMut(Frame<'_>),
    ) -> bool {
        let rest = &buffer[*used..];
        match self.state {
            State::Start => {
                // Keepalives (RFC 5626, section 3.5.1) and what servers skip before a start line.
                let blanks = rest.iter().position(|byte| *byte > b' ').unwrap_or(rest.len());
                *used += blanks;
                if blanks == rest.len() {
                    return false;
                }
                (self.state, self.scanned) = (State::Head { checked: false }, 0);
                true
            }
            State::Head { checked: false } => {
                let Some(end) = find_line_end(rest, self.scanned) else {
                    self.scanned = rest.len();
                    if rest.len() > MAX_LINE {
                        self.search();
                        return true;
                    }
                    return false;
                };
                self.scanned = 0;
                if end <= MAX_LINE && begins_message(&rest[..end]) {
                    (self.state, self.scanned) = (State::Head { checked: true }, end);
                } else {
                    self.search();
                }
                true
            }
            State::Head { checked: true } => self.read_head(rest, used, deliver),
            State::Body { left, length } => {
                let here = left.min(rest.len());
                *used += here;
                if here < left {
                    self.state = State::Body { left: left - here, length };
                    return false;
                }
                let head = std::mem::take(&mut self.head);
                self.state = State::Start;
                self.deliver(&head, length, true, deliver);
                true
            }
            State::Search { fresh, inside } => {
                let Some(end) = find_line_end(rest, self.scanned) else {
                    self.scanned = rest.len();
                    if rest.len() > MAX_LINE || inside {
                        self.garbage += rest.len() as u64;
                        *used += rest.len();
                        self.scanned = 0;
                        self.state = State::Search { fresh: false, inside: true };
                    }
                    return false;
                };
                self.scanned = 0;
                let line = &rest[..end];
                let blanks = line.iter().position(|byte| *byte > b' ').unwrap_or(line.len());
                if !inside && line.len() <= MAX_LINE && is_start_line(&line[blanks..]) {
                    if fresh {
                        self.uncertain = 0;
                    }
                    *used += blanks;
                    (self.state, self.scanned) = (State::Head { checked: true }, end - blanks);
                } else {
                    let is_blank = blanks == line.len();
                    self.garbage += if is_blank { 0 } else { end as u64 + 1 };
                    *used += end + 1;
                    let fresh = fresh && is_blank;
                    self.state = State::Search { fresh, inside: false };
                }
                true
            }
        }
    }

    /// The headers of a message whose start line has been checked.
    fn read_head(
        &mut self,
        rest: &[u8],
        used: &mut usize,
        deliver: &mut dyn FnMut(Frame<'_>),
    ) -> bool {
        let end = find_head_end(rest, self.scanned).filter(|end| *end <= MAX_HEAD);
        let Some(end) = end else {
            if rest.len() > MAX_HEAD {
                *used += MAX_HEAD;
                self.deliver(&rest[..MAX_HEAD], MAX_HEAD, false, deliver);
                self.search();
                return true;
            }
            // The end may begin with the last three bytes.
            self.scanned = rest.len().saturating_sub(3);
            return false;
        };
        *used += end;
        self.scanned = 0;
        let head = &rest[..end];
        let body = content_length(head);
        if body > MAX_BODY {
            self.deliver(head, end, true, deliver);
            self.search();
            return true;
        }
        if body == 0 {
            self.state = State::Start;
            self.deliver(head, end, true, deliver);
        } else {
            self.state = State::Body { left: body, length: end + body };
            self.head = head.to_vec();
        }
        true
    }
}

fn find_line_end(bytes: &[u8], from: usize) -> Option<usize> {
    bytes.get(from..)?.iter().position(|byte| *byte == b'\n').map(|at| from + at)
}

/// The end of the headers, behind the blank line.
fn find_head_end(bytes: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    while let Some(end) = find_line_end(bytes, at) {
        match bytes.get(end + 1..)? {
            [b'\n', ..] => return Some(end + 2),
            [b'\r', b'\n', ..] => return Some(end + 3),
            _ => at = end + 1,
        }
    }
    None
}

/// Whether a line can begin a message where one is due: as the parser takes it, of any version.
fn begins_message(line: &[u8]) -> bool {
    super::message::Head::read(&[line, b"\n"].concat()).is_some()
}

/// Whether a line is a start line beyond doubt: it names the version.
fn is_start_line(line: &[u8]) -> bool {
    const VERSION: &[u8] = b"SIP/2.0";
    let line = line.trim_ascii_end();
    let names_version =
        |part: Option<&[u8]>| part.is_some_and(|part| part.eq_ignore_ascii_case(VERSION));
    let is_response = names_version(line.get(..VERSION.len()));
    let is_request = names_version(line.len().checked_sub(VERSION.len()).map(|at| &line[at..]))
        && line.first().is_some_and(u8::is_ascii_alphabetic);
    (is_response || is_request) && begins_message(line)
}

/// The length of the body. Without the header, which RFC 3261 (20.14) demands, there is none.
fn content_length(head: &[u8]) -> usize {
    let is_length = |name: &[u8]| {
        name.eq_ignore_ascii_case(b"content-length") || name.eq_ignore_ascii_case(b"l")
    };
    let value = headers(head).find(|(name, _)| is_length(name)).map(|(_, value)| value);
    let digits = value.unwrap_or_default();
    let end = digits.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].iter().fold(0_usize, |sum, digit| {
        sum.saturating_mul(10).saturating_add(usize::from(digit - b'0'))
    })
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
