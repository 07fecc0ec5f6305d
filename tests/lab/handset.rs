//! One simulated phone: its requests, retransmissions, and reactions to responses. See
//! [`crate::phones`].

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::digest::Challenge;
use crate::message::Message;
use crate::phones::Counts;
use crate::registrar::phone_password;
use crate::softphone::description;

/// First retransmission interval (T1 of RFC 3261), maximum interval (T2), and timeout (timer F).
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(4);
const GIVE_UP: Duration = Duration::from_secs(32);
/// Number of rejected tries, and the pause before it starts again.
const TRIES: u32 = 2;
const SULK: Duration = Duration::from_secs(30);

/// A phone.
pub(crate) struct Handset {
    user: String,
    from: SocketAddr,
    to: SocketAddr,
    refresh: Option<Duration>,
    registration: Dialog,
    subscriptions: Vec<Dialog>,
}

/// A registration or subscription, with its last request.
struct Dialog {
    method: &'static str,
    /// The user in the request's URI.
    target: String,
    call_id: String,
    sequence: u32,
    /// The challenge for credentials, kept for later requests.
    challenge: Option<Challenge>,
    request: Vec<u8>,
    /// Start of the wait for a response, and the retransmission interval.
    waiting: Option<(Instant, Duration)>,
    /// Time of the next action, independent of a response.
    due: Option<Instant>,
    rejected: u32,
    accepted: bool,
}

impl Handset {
    /// A phone that registers at the first patrol, and subscribes after that. Its Call-IDs are
    /// those of this `start`: sequence numbers begin anew with each, and a registrar refuses those
    /// that it has seen in a Call-ID (RFC 3261, 10.3).
    pub(crate) fn new(
        start: u64,
        user: String,
        from: SocketAddr,
        to: SocketAddr,
        watched: Vec<String>,
        refresh: Option<Duration>,
    ) -> Self {
        let call_id = |kind: &str| format!("{kind}-{start}-{user}-{}@{}", from.port(), from.ip());
        let mut registration = Dialog::new("REGISTER", user.clone(), call_id("register"));
        registration.due = Some(Instant::now());
        let watch = |watched: String| {
            let call_id = call_id(&format!("watch-{watched}"));
            Dialog::new("SUBSCRIBE", watched, call_id)
        };
        let subscriptions = watched.into_iter().map(watch).collect();
        Self { user, from, to, refresh, registration, subscriptions }
    }

    pub(crate) fn is_registered(&self) -> bool {
        self.registration.accepted
    }

    pub(crate) fn subscribed(&self) -> usize {
        self.subscriptions.iter().filter(|dialog| dialog.accepted).count()
    }

    /// Starts registering again.
    pub(crate) fn register_again(&mut self, now: Instant) {
        self.registration.accepted = false;
        self.registration.waiting = None;
        self.registration.due = Some(now);
    }

    /// Performs due actions.
    pub(crate) fn patrol(&mut self, now: Instant, socket: &UdpSocket, counts: &Counts) {
        let identity = Identity { user: &self.user, from: self.from, to: self.to };
        for dialog in std::iter::once(&mut self.registration).chain(&mut self.subscriptions) {
            dialog.patrol(now, &identity, socket, counts);
        }
    }

    /// Processes a datagram: a response, or a request, which it answers.
    pub(crate) fn take(
        &mut self,
        datagram: &[u8],
        now: Instant,
        socket: &UdpSocket,
        counts: &Counts,
    ) {
        let Some(message) = Message::parse(datagram) else { return };
        if let Some(method) = message.method() {
            if method == "INVITE" {
                add(&counts.called);
            }
            if method != "ACK" {
                let mut headers = format!("Contact: <sip:{}@{}>\r\n", self.user, self.from);
                let mut body = String::new();
                if method == "INVITE" {
                    headers.push_str("Content-Type: application/sdp\r\n");
                    body = description(self.from);
                }
                // A lost response is requested again.
                let _ = socket.send(&message.answer_with("200 OK", &headers, &body));
            }
            return;
        }
        let identity = Identity { user: &self.user, from: self.from, to: self.to };
        let mut dialogs = std::iter::once(&mut self.registration).chain(&mut self.subscriptions);
        let asked =
            dialogs.find(|dialog| message.header("Call-ID") == Some(dialog.call_id.as_str()));
        let Some(dialog) = asked else { return };
        let was_accepted = dialog.accepted;
        dialog.take(&message, now, self.refresh, &identity, socket, counts);
        if dialog.method == "REGISTER" && dialog.accepted && !was_accepted {
            for subscription in &mut self.subscriptions {
                subscription.due = subscription.due.or(Some(now));
            }
        }
    }
}

/// What all requests of a phone share.
struct Identity<'a> {
    user: &'a str,
    from: SocketAddr,
    to: SocketAddr,
}

impl Dialog {
    fn new(method: &'static str, target: String, call_id: String) -> Self {
        Self {
            method,
            target,
            call_id,
            sequence: 0,
            challenge: None,
            request: Vec::new(),
            waiting: None,
            due: None,
            rejected: 0,
            accepted: false,
        }
    }

    fn patrol(
        &mut self,
        now: Instant,
        identity: &Identity<'_>,
        socket: &UdpSocket,
        counts: &Counts,
    ) {
        if self.due.is_none_or(|due| due > now) {
            return;
        }
        match self.waiting {
            None => {
                self.rejected = 0;
                if self.method == "REGISTER" {
                    add(&counts.begun);
                }
                self.ask(now, identity, socket, counts);
            }
            Some((since, _)) if now - since >= GIVE_UP => {
                add(&counts.unanswered);
                self.restart_later(now);
            }
            Some((since, pause)) => {
                let pause = (2 * pause).min(LONGEST_WAIT);
                self.waiting = Some((since, pause));
                self.due = Some((now + pause).min(since + GIVE_UP));
                add(&counts.repeated);
                self.send(socket, counts);
            }
        }
    }

    fn take(
        &mut self,
        answer: &Message<'_>,
        now: Instant,
        refresh: Option<Duration>,
        identity: &Identity<'_>,
        socket: &UdpSocket,
        counts: &Counts,
    ) {
        let status = answer.status().filter(|status| *status >= 200);
        let Some(status) =
            status.filter(|_| self.waiting.is_some() && answer.sequence() == Some(self.sequence))
        else {
            return;
        };
        if let Some(challenge) = Challenge::of(answer) {
            // The request carried credentials if there was a challenge.
            if self.challenge.is_some() {
                add(if challenge.is_stale { &counts.stale } else { &counts.rejected });
                self.rejected += 1;
            }
            if self.rejected >= TRIES {
                self.accepted = false;
                return self.restart_later(now);
            }
            self.challenge = Some(challenge);
            return self.ask(now, identity, socket, counts);
        }
        self.accepted = (200..300).contains(&status);
        if !self.accepted {
            add(&counts.refused);
            return self.restart_later(now);
        }
        if self.method == "REGISTER" {
            add(&counts.accepted);
        }
        self.waiting = None;
        self.due = refresh.map(|refresh| now + refresh);
    }

    /// Starts again later, without state.
    fn restart_later(&mut self, now: Instant) {
        self.challenge = None;
        self.waiting = None;
        self.due = Some(now + SULK);
    }

    fn ask(&mut self, now: Instant, identity: &Identity<'_>, socket: &UdpSocket, counts: &Counts) {
        self.sequence += 1;
        self.request = self.write(identity);
        self.waiting = Some((now, FIRST_WAIT));
        self.due = Some(now + FIRST_WAIT);
        self.send(socket, counts);
    }

    fn send(&self, socket: &UdpSocket, counts: &Counts) {
        add(&counts.sent);
        // Lost requests are retransmitted.
        let _ = socket.send(&self.request);
    }

    fn write(&self, identity: &Identity<'_>) -> Vec<u8> {
        let (Self { method, target, call_id, sequence, .. }, Identity { user, from, to }) =
            (self, identity);
        let uri = format!("sip:{target}@{to}");
        // Branches and tags are tokens (RFC 3261, 25.1), which have no @.
        let token = call_id.replace('@', ".");
        let credentials = self.challenge.as_ref().map_or_else(String::new, |challenge| {
            challenge.credentials(user, &phone_password(user), method, &uri)
        });
        let event = if *method == "SUBSCRIBE" {
            "Event: dialog\r\nAccept: application/dialog-info+xml\r\n"
        } else {
            ""
        };
        format!(
            "{method} {uri} SIP/2.0\r\n\
             Via: SIP/2.0/UDP {from};branch=z9hG4bK{token}-{sequence};rport\r\n\
             Max-Forwards: 70\r\n\
             From: <sip:{user}@lab.example>;tag={token}\r\n\
             To: <sip:{target}@lab.example>\r\n\
             Call-ID: {call_id}\r\n\
             CSeq: {sequence} {method}\r\n\
             Contact: <sip:{user}@{from}>\r\n\
             User-Agent: Yealink SIP-T46S 66.86.0.15\r\n\
             {event}{credentials}\
             Expires: 3600\r\n\
             Content-Length: 0\r\n\r\n"
        )
        .into_bytes()
    }
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A running phone, with the requests that it sends.
    struct Bench {
        handset: Handset,
        own: UdpSocket,
        other: UdpSocket,
        counts: Counts,
    }

    impl Bench {
        fn new() -> Self {
            Self::started(1)
        }

        fn started(start: u64) -> Self {
            let [own, other] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
            let (from, to) = (own.local_addr().unwrap(), other.local_addr().unwrap());
            own.connect(to).unwrap();
            other.connect(from).unwrap();
            other.set_nonblocking(true).unwrap();
            let handset = Handset::new(start, "1000".into(), from, to, vec!["1001".into()], None);
            Self { handset, own, other, counts: Counts::default() }
        }

        fn patrol(&mut self, at: Instant) -> Vec<String> {
            self.handset.patrol(at, &self.own, &self.counts);
            self.sent()
        }

        fn answer(
            &mut self,
            request: &str,
            status: &str,
            headers: &str,
            at: Instant,
        ) -> Vec<String> {
            let answer = Message::parse(request.as_bytes()).unwrap().answer(status, headers);
            self.handset.take(&answer, at, &self.own, &self.counts);
            self.sent()
        }

        fn sent(&self) -> Vec<String> {
            let mut buffer = [0; 4096];
            let receive = || {
                let length = self.other.recv(&mut buffer).ok()?;
                Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
            };
            std::iter::from_fn(receive).collect()
        }
    }

    const CHALLENGE: &str = "WWW-Authenticate: Digest realm=\"lab.example\", nonce=\"abc\"\r\n";

    #[test]
    fn sends_again_eleven_times_and_then_gives_up() {
        let mut bench = Bench::new();
        let start = Instant::now();
        let mut sent = 0;
        for tick in 0..320 {
            sent += bench.patrol(start + tick * Duration::from_millis(100)).len();
        }
        assert_eq!((sent, bench.counts.repeated.load(Relaxed)), (11, 10));
        assert!(bench.patrol(start + Duration::from_secs(33)).is_empty());
        let again = bench.patrol(start + Duration::from_secs(70));
        assert!(again[0].contains("CSeq: 2 REGISTER"), "{again:?}");
    }

    #[test]
    fn another_start_has_other_call_ids() {
        let call_id = |start| {
            let mut bench = Bench::started(start);
            let sent = bench.patrol(Instant::now());
            let message = Message::parse(sent[0].as_bytes()).unwrap();
            message.header("Call-ID").unwrap().to_owned()
        };
        assert_ne!(call_id(1), call_id(2));
    }

    #[test]
    fn registers_and_then_watches() {
        let mut bench = Bench::new();
        let start = Instant::now();
        let bare = bench.patrol(start);
        let full = bench.answer(&bare[0], "401 Unauthorized", CHALLENGE, start);
        assert!(full[0].contains("\r\nAuthorization: Digest username=\"1000\""), "{full:?}");
        assert!(
            bench.answer(&bare[0], "200 OK", "", start).is_empty()
                && !bench.handset.is_registered(),
            "an old one"
        );
        assert!(
            bench.answer(&full[0], "200 OK", "", start).is_empty() && bench.handset.is_registered()
        );
        let watching = bench.patrol(start);
        assert!(
            watching[0].starts_with("SUBSCRIBE sip:1001@") && watching.len() == 1,
            "{watching:?}"
        );
        bench.answer(&watching[0], "200 OK", "", start);
        assert_eq!(bench.handset.subscribed(), 1);
        assert!(bench.patrol(start + Duration::from_secs(3600)).is_empty());
    }

    #[test]
    fn shows_its_credentials_twice_and_then_rests() {
        let mut bench = Bench::new();
        let start = Instant::now();
        let bare = bench.patrol(start);
        let first = bench.answer(&bare[0], "401 Unauthorized", CHALLENGE, start);
        let second = bench.answer(&first[0], "401 Unauthorized", CHALLENGE, start);
        assert!(bench.answer(&second[0], "401 Unauthorized", CHALLENGE, start).is_empty());
        assert!(bench.patrol(start + Duration::from_secs(29)).is_empty());
        let again = bench.patrol(start + Duration::from_secs(31));
        assert!(!again[0].contains("Authorization"), "{again:?}");
        assert_eq!(bench.counts.rejected.load(Relaxed), 2);
        bench.answer(&again[0], "403 Forbidden", "", start);
        assert_eq!(bench.counts.refused.load(Relaxed), 1);
    }
}
