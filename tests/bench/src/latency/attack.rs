//! One attack against one defence, seen from the attacker's side: requests sent and answered, with
//! times.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use sip_xdp_tests::capture::Packet;
use sip_xdp_tests::process::Process;
use sip_xdp_tests::sip::Request;
use sip_xdp_tests::topology::{ATTACKER, OUTSIDE, PBX_WAN, WAN};
use sip_xdp_tests::{
    Attacker, Capture, Fail2ban, Filter, Lab, Namespace, Registrar, RegistrarOptions, Stream,
    fail2ban, stream, wait_until,
};

/// Duration of an attack from its first packet: twice what either defence takes.
pub(crate) const LASTS: Duration = Duration::from_millis(2000);
/// How many requests a second the flood has.
pub(crate) const FLOOD: u32 = 1000;
/// sip-xdp's default: more requests than this ...
pub(crate) const LIMIT: usize = 50;
/// ... within this time are over the limit.
pub(crate) const LIMIT_PER: Duration = Duration::from_secs(10);

/// What the attacker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attack {
    /// svcrack guesses passwords, as fast as it does by default.
    Crack,
    /// REGISTERs with made-up credentials at a constant rate: every single one is a failed login.
    Flood,
}

/// Who defends the registrar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Defence {
    /// The product with its default configuration.
    SipXdp,
    /// fail2ban with its default thresholds.
    Fail2ban,
}

/// The result of one attack.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    /// Milliseconds from the packet that crosses the threshold to the first dropped one.
    pub(crate) first_drop: f64,
    /// Milliseconds from the packet that crosses the threshold to the ban.
    pub(crate) ban: f64,
    /// Requests that the attacker sent.
    pub(crate) sent: usize,
    /// Requests that the registrar received, by its own log.
    pub(crate) reached: usize,
    /// Requests that the registrar answered, by the capture.
    pub(crate) answered: usize,
    /// Packets that the filter counted as dropped.
    pub(crate) counted: Option<u64>,
    /// Requests beyond the limit before the first dropped one.
    pub(crate) excess: usize,
}

/// A request of the attacker.
#[derive(Debug, Clone, Copy)]
struct Sent {
    at: SystemTime,
    answered: bool,
}

/// Runs one attack in a network of its own.
pub(crate) fn run(attack: Attack, defence: Defence) -> Result<Outcome> {
    let lab = Lab::new()?;
    let log_file = lab.directory().join("registrar.log");
    let options =
        RegistrarOptions { log_file: Some(log_file.clone()), ..RegistrarOptions::default() };
    let registrar = Registrar::start_with(&lab.pbx, lab.directory(), &options)?;
    let guard = Guard::start(defence, &lab.pbx, lab.directory(), &log_file)?;
    let capture = Capture::start(
        &lab.attacker,
        OUTSIDE,
        &format!("udp and host {ATTACKER}"),
        lab.directory(),
    )?;
    let mut assault = Assault::start(attack, &lab)?;
    wait_until("the attacker sends", Duration::from_secs(15), || {
        Ok(!capture.packets()?.is_empty())
    })?;
    sleep(LASTS);
    assault.stop()?;
    let packets = capture.stop()?;
    evaluate(&requests(&packets), &registrar, &guard).with_context(|| {
        format!("the defence said:\n{}\nthe registrar:\n{}", guard.log(), registrar.log())
    })
}

fn evaluate(sent: &[Sent], registrar: &Registrar, guard: &Guard<'_>) -> Result<Outcome> {
    let dropped =
        sent.iter().position(|request| !request.answered).context("every request was answered")?;
    let (first, first_dropped) = (sent.first().context("nothing was sent")?.at, sent[dropped].at);
    let threshold = match guard {
        Guard::SipXdp(_) => over_the_limit(sent).context("the attack never exceeded the limit")?,
        Guard::Fail2ban(_) => {
            let failures = registrar.failures_of(ATTACKER);
            *failures.get(fail2ban::MAX_RETRY - 1).context("too few failed logins for a ban")?
        }
    };
    Ok(Outcome {
        first_drop: milliseconds(threshold, first_dropped),
        ban: milliseconds(threshold, guard.banned().context("it never came to a ban")?),
        sent: sent.len(),
        reached: registrar.received_from(ATTACKER),
        answered: sent.iter().filter(|request| request.answered).count(),
        counted: guard.counted()?,
        excess: dropped
            .saturating_sub(room(first_dropped.duration_since(first).unwrap_or_default())),
    })
}

/// The request that is one too many within the time of the limit.
fn over_the_limit(sent: &[Sent]) -> Option<SystemTime> {
    let windows =
        sent.windows(LIMIT + 1).filter_map(|window| Some((window.first()?.at, window.last()?.at)));
    windows
        .filter(|(first, last)| last.duration_since(*first).is_ok_and(|took| took <= LIMIT_PER))
        .map(|(_, last)| last)
        .next()
}

/// How many requests a token bucket of the limit's size lets through in a time that begins with the
/// first one.
fn room(time: Duration) -> usize {
    // Both factors are small and positive.
    LIMIT + (LIMIT as f64 * time.as_secs_f64() / LIMIT_PER.as_secs_f64()) as usize
}

/// Milliseconds from one moment to another, negative when that was earlier.
fn milliseconds(from: SystemTime, to: SystemTime) -> f64 {
    match to.duration_since(from) {
        Ok(after) => after.as_secs_f64() * 1e3,
        Err(before) => -before.duration().as_secs_f64() * 1e3,
    }
}

/// The attacker's requests in the order of a capture, each with whether it was answered.
fn requests(packets: &[Packet]) -> Vec<Sent> {
    let texts: Vec<_> =
        packets.iter().map(|packet| (packet.at, String::from_utf8_lossy(&packet.data))).collect();
    let is_response = |text: &str| text.contains("SIP/2.0 ") && !text.contains(" SIP/2.0\r\n");
    let answered: HashSet<_> = texts
        .iter()
        .filter(|(_, text)| is_response(text))
        .filter_map(|(_, text)| branch(text))
        .collect();
    let sent = texts.iter().filter(|(_, text)| !is_response(text));
    sent.filter_map(|(at, text)| Some(Sent { at: *at, answered: answered.contains(branch(text)?) }))
        .collect()
}

/// What tells one transaction from another: the branch of the first Via, which a response repeats.
fn branch(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("branch=")?;
    rest.split(|end: char| end == ';' || end == ',' || end.is_whitespace()).next()
}

/// The defence, running.
enum Guard<'a> {
    SipXdp(Box<Filter<'a>>),
    Fail2ban(Fail2ban),
}

impl<'a> Guard<'a> {
    fn start(
        defence: Defence,
        namespace: &'a Namespace,
        directory: &Path,
        log: &Path,
    ) -> Result<Self> {
        Ok(match defence {
            Defence::SipXdp => Self::SipXdp(Box::new(Filter::start(namespace, directory)?)),
            Defence::Fail2ban => Self::Fail2ban(Fail2ban::start(namespace, directory, log)?),
        })
    }

    /// When it said that the attacker is banned.
    fn banned(&self) -> Option<SystemTime> {
        match self {
            Self::SipXdp(filter) => filter.ban_logged(&ATTACKER.to_string()),
            Self::Fail2ban(fail2ban) => fail2ban.banned(ATTACKER),
        }
    }

    /// How many packets it counted as dropped, if it counts.
    fn counted(&self) -> Result<Option<u64>> {
        match self {
            Self::SipXdp(filter) => filter.dropped(WAN).map(Some),
            Self::Fail2ban(_) => Ok(None),
        }
    }

    fn log(&self) -> String {
        match self {
            Self::SipXdp(filter) => {
                filter.log().iter().map(|line| format!("    {}\n", line.text)).collect()
            }
            Self::Fail2ban(fail2ban) => fail2ban.log(),
        }
    }
}

/// The attack, running.
enum Assault {
    Tool(Process),
    Stream(Option<Stream>),
}

impl Assault {
    fn start(attack: Attack, lab: &Lab) -> Result<Self> {
        Ok(match attack {
            Attack::Crack => {
                Self::Tool(Attacker::new(&lab.attacker, lab.directory()).crack("101")?)
            }
            Attack::Flood => Self::Stream(Some(flood(&lab.attacker)?)),
        })
    }

    fn stop(&mut self) -> Result<()> {
        match self {
            Self::Tool(tool) => {
                if tool.try_wait()?.is_some() {
                    bail!("the tool gave up:\n{}", tool.tail());
                }
                tool.stop(Signal::SIGTERM).map(drop)
            }
            Self::Stream(stream) => stream.take().map_or(Ok(()), |stream| stream.stop().map(drop)),
        }
    }
}

/// Every request has credentials of its own, which are wrong.
fn flood(namespace: &Namespace) -> Result<Stream> {
    let (from, to) =
        (SocketAddr::new(ATTACKER.into(), 5060), SocketAddr::new(PBX_WAN.into(), 5060));
    Stream::start(stream::socket(namespace, from, to)?, FLOOD, move |number| {
        let sequence = u32::try_from(number).unwrap_or(u32::MAX);
        let request =
            Request { method: "REGISTER", user: "101", call_id: "flood", sequence, from, to };
        request.bytes_with(&format!(
            "Authorization: Digest username=\"101\", realm=\"lab.example\", nonce=\"made-up\", \
             uri=\"sip:101@{to}\", response=\"{number:032x}\"\r\n"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(millisecond: u64, text: &str) -> Packet {
        Packet {
            at: SystemTime::UNIX_EPOCH + Duration::from_millis(millisecond),
            data: text.as_bytes().to_vec(),
        }
    }

    #[test]
    fn matches_responses_to_requests() {
        let found = requests(&[
            packet(1, "REGISTER sip:x SIP/2.0\r\nVia: SIP/2.0/UDP a;branch=z9-1;rport\r\n"),
            packet(2, "SIP/2.0 401 Unauthorized\r\nVia: SIP/2.0/UDP a;branch=z9-1;rport=5060\r\n"),
            packet(3, "REGISTER sip:x SIP/2.0\r\nVia: SIP/2.0/UDP a;branch=z9-2\r\n"),
        ]);
        assert_eq!(found.iter().map(|request| request.answered).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn the_limit_is_exceeded_by_the_first_request_too_many() {
        let sent: Vec<_> = (0..100)
            .map(|number| Sent { at: packet(number * 100, "").at, answered: true })
            .collect();
        assert_eq!(over_the_limit(&sent), Some(packet(5000, "").at));
        let slow: Vec<_> = (0..100)
            .map(|number| Sent { at: packet(number * 250, "").at, answered: true })
            .collect();
        assert_eq!(over_the_limit(&slow), None);
        assert_eq!((room(Duration::ZERO), room(Duration::from_millis(400))), (50, 52));
    }
}
