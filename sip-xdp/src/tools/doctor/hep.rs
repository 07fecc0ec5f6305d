//! Whether somebody tells us what cannot be read on the wire: SIP over TLS and WebSocket.

use super::sockets::{Listener, Transport};
use super::{Check, HostFacts, Status};
use crate::config::HepListen;

const CHECK: &str = "encrypted";

/// Ports on which servers take SIP over TLS or WebSocket: 5061 by RFC 3261; Asterisk's web server,
/// FreeSWITCH's `wss-binding` and `ws-binding`, and what operators give to Kamailio and OpenSIPS.
const PORTS: [u16; 10] = [443, 5_061, 5_066, 5_081, 5_161, 5_443, 7_443, 8_088, 8_089, 8_443];

/// A server that can send HEP, by the name of its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Server {
    Asterisk,
    Kamailio,
    OpenSips,
    FreeSwitch,
}

impl Server {
    fn of(process: &str) -> Option<Self> {
        Some(match process {
            "asterisk" => Self::Asterisk,
            "kamailio" => Self::Kamailio,
            "opensips" => Self::OpenSips,
            "freeswitch" => Self::FreeSwitch,
            _ => return None,
        })
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Asterisk => "Asterisk",
            Self::Kamailio => "Kamailio",
            Self::OpenSips => "OpenSIPS",
            Self::FreeSwitch => "FreeSWITCH",
        }
    }

    /// What makes it send HEP to a place, in its own configuration.
    ///
    /// - Asterisk: `configs/samples/hep.conf.sample` and `res/res_hep.c`, which sends by UDP only.
    /// - Kamailio: `src/modules/siptrace/README`; `trace_mode` 1 sends all messages.
    ///   Tried with 5.6.
    /// - OpenSIPS: `modules/proto_hep/README` and `modules/tracer/README`, of 3.x; "t" covers
    ///   stateless answers as well (`trace_transaction` in `modules/tracer/tracer.c`).
    /// - FreeSWITCH: `conf/vanilla/autoload_configs/sofia.conf.xml`; read by
    ///   `libs/sofia-sip/libsofia-sip-ua/tport/tport_logging.c`, which sends by UDP or TCP.
    fn lines(self, listen: HepListen) -> String {
        let (to, port) = (listen.address, listen.address.port());
        let transport = if listen.is_tcp { "tcp" } else { "udp" };
        let by_udp = if listen.is_tcp {
            format!("which sends HEP by UDP alone: also\n[[hep]]\nlisten = \"udp:{to}\"\nand then ")
        } else {
            String::new()
        };
        let parameter = if listen.is_tcp { ";transport=tcp" } else { "" };
        match self {
            Self::Asterisk => format!(
                "{by_udp}in /etc/asterisk/hep.conf:\n[general]\nenabled = yes\n\
                 capture_address = {to}\n\
                 capture_id = 1\nand then: asterisk -rx 'module load res_hep.so'; asterisk -rx \
                 'module load res_hep_pjsip.so'"
            ),
            Self::Kamailio => format!(
                "in kamailio.cfg:\nloadmodule \"siptrace.so\"\n\
                 modparam(\"siptrace\", \"duplicate_uri\", \"sip:{to}{parameter}\")\n\
                 modparam(\"siptrace\", \"hep_mode_on\", 1)\n\
                 modparam(\"siptrace\", \"hep_version\", 3)\n\
                 modparam(\"siptrace\", \"trace_to_database\", 0)\n\
                 modparam(\"siptrace\", \"trace_on\", 1)\n\
                 modparam(\"siptrace\", \"trace_mode\", 1)"
            ),
            Self::OpenSips => format!(
                "in opensips.cfg:\nloadmodule \"proto_hep.so\"\n\
                 socket=hep_{transport}:127.0.0.1:{}\n\
                 modparam(\"proto_hep\", \"hep_id\", \"[xdp] {to}; transport={transport}; \
                 version=3\")\n\
                 loadmodule \"tracer.so\"\nmodparam(\"tracer\", \"trace_on\", 1)\n\
                 modparam(\"tracer\", \"trace_id\", \"[xdp]uri=hep:xdp\")\n\
                 and first in route {{}}: trace(\"xdp\", \"t\");",
                port.wrapping_add(1)
            ),
            Self::FreeSwitch => format!(
                "in autoload_configs/sofia.conf.xml, global_settings:\n\
                 <param name=\"capture-server\" value=\"{transport}:{to};hep=3;capture_id=1\"/>\n\
                 and in each SIP profile:\n<param name=\"sip-capture\" value=\"yes\"/>"
            ),
        }
    }
}

/// Whether what is encrypted is told.
pub(super) fn check(facts: &HostFacts, listeners: &[Listener]) -> Check {
    let taken = facts.daemon.as_ref();
    let taken = taken.map(|daemon| daemon.hep.iter().map(|place| place.taken).sum::<u64>());
    let listen: Vec<HepListen> = facts.config.hep.iter().map(|one| one.listen).collect();
    judge(listeners, &listen, taken)
}

/// The same of a running daemon, in one line; none if all is told.
pub(super) fn unread(listeners: &[Listener], listen: &[HepListen], taken: u64) -> Option<String> {
    let found = judge(listeners, listen, Some(taken));
    (found.status == Status::Warn).then(|| {
        format!(
            "{}; `sip-xdp doctor` prints the lines for the server's configuration",
            found.detail
        )
    })
}

fn judge(listeners: &[Listener], listen: &[HepListen], taken: Option<u64>) -> Check {
    let is_encrypted = |one: &&Listener| {
        let is_known = Server::of(one.name()).is_some() && PORTS.contains(&one.port);
        // Whose sockets they are, only root may see.
        one.transport == Transport::Tcp
            && !one.address.is_loopback()
            && (is_known || one.process.is_none() && one.port == 5_061)
    };
    let found: Vec<&Listener> = listeners.iter().filter(is_encrypted).collect();
    if found.is_empty() {
        return Check::ok(CHECK, "no SIP server is found that takes TLS or WebSocket");
    }
    let places: Vec<String> = found.iter().map(ToString::to_string).collect();
    let place = listen.first().copied().unwrap_or_default();
    let mut servers: Vec<Server> = Vec::new();
    for server in found.iter().filter_map(|one| Server::of(one.name())) {
        if !servers.contains(&server) {
            servers.push(server);
        }
    }
    let mut lines: Vec<String> = servers
        .iter()
        .map(|server| format!("{}, {}", server.name(), server.lines(place)))
        .collect();
    if lines.is_empty() {
        lines.push(format!("have the SIP server send HEP3 to {place}"));
    }
    let encrypted =
        format!("{}: what comes by TLS or WebSocket cannot be read on the wire", places.join("; "));
    match (listen.is_empty(), taken) {
        (true, _) => {
            lines.insert(
                0,
                format!("in the configuration, and reload:\n[[hep]]\nlisten = \"{place}\""),
            );
            let detail = format!("{encrypted}, and nobody tells it: guesses there ban nobody");
            Check::warn(CHECK, detail, lines.join("\n"))
        }
        (false, Some(0)) => {
            let detail = format!("{encrypted}, and no message has come by HEP at {place} yet");
            Check::warn(CHECK, detail, lines.join("\n"))
        }
        (false, Some(taken)) => Check::ok(CHECK, format!("{encrypted}; {taken} came by HEP")),
        (false, None) => Check::ok(CHECK, format!("{encrypted}; it is to come by HEP at {place}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(process: Option<&str>, address: &str, port: u16) -> Listener {
        Listener {
            process: process.map(|name| (name.to_owned(), 7)),
            transport: Transport::Tcp,
            address: address.parse().unwrap(),
            port,
        }
    }

    #[test]
    fn each_server_gets_its_own_lines() {
        for (name, port, expected) in [
            ("asterisk", 8_089, "capture_address = 127.0.0.1:9060\n"),
            (
                "kamailio",
                5_061,
                "modparam(\"siptrace\", \"duplicate_uri\", \"sip:127.0.0.1:9060\")",
            ),
            ("opensips", 443, "[xdp] 127.0.0.1:9060; transport=udp; version=3"),
            ("freeswitch", 7_443, "value=\"udp:127.0.0.1:9060;hep=3;capture_id=1\""),
        ] {
            let found = judge(&[listener(Some(name), "0.0.0.0", port)], &[], None);
            let remedy = found.remedy.unwrap();
            assert_eq!(found.status, Status::Warn);
            assert!(remedy.contains(expected) && remedy.contains("[[hep]]"), "{remedy}");
            assert_eq!(remedy.matches("in the configuration").count(), 1);
        }
    }

    #[test]
    fn lines_for_a_place_of_tcp_fit_what_the_server_can() {
        let place = HepListen { is_tcp: true, ..HepListen::default() };
        for (server, expected) in [
            (Server::Asterisk, "listen = \"udp:127.0.0.1:9060\"\nand then in /etc/asterisk"),
            (Server::Kamailio, "\"sip:127.0.0.1:9060;transport=tcp\""),
            (Server::OpenSips, "127.0.0.1:9060; transport=tcp"),
            (Server::FreeSwitch, "\"tcp:127.0.0.1:9060;hep=3"),
        ] {
            let lines = server.lines(place);
            assert!(lines.contains(expected), "{lines}");
        }
    }

    #[test]
    fn who_is_told_is_content() {
        let asterisk = [listener(Some("asterisk"), "0.0.0.0", 5_061)];
        let place = HepListen { is_tcp: true, ..HepListen::default() };
        for (listeners, listen, taken, expected) in [
            (&asterisk[..], &[place][..], Some(5), Status::Ok),
            (&asterisk, &[place], None, Status::Ok),
            (&asterisk, &[place], Some(0), Status::Warn),
            (&[listener(None, "::", 5_061)], &[], None, Status::Warn),
            (&[listener(Some("nginx"), "::", 443)], &[], None, Status::Ok),
            (&[listener(Some("asterisk"), "127.0.0.1", 8_088)], &[], None, Status::Ok),
            (&[listener(Some("asterisk"), "0.0.0.0", 5_060)], &[], None, Status::Ok),
        ] {
            assert_eq!(judge(listeners, listen, taken).status, expected, "{listeners:?}");
            let warning = unread(listeners, listen, taken.unwrap_or(1));
            assert_eq!(warning.is_some(), expected == Status::Warn, "{warning:?}");
        }
    }
}
