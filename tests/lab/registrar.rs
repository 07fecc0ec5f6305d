//! A real registrar: Kamailio with digest authentication, its users in its configuration, and one
//! log line per request.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::encrypted::Certificate;
use crate::namespace::Namespace;
use crate::process::{Line, Process, succeed};
use crate::topology::PBX_WAN;

/// The users of [`Registrar::start`]: name and password.
pub const USERS: [(&str, &str); 3] =
    [("alice", "wonderland-7"), ("bob", "builder-8"), ("101", "not-in-any-list")];

/// The users of [`RegistrarOptions::phones`]: 1000 to 1299, as a pattern of the configuration.
const PHONES: &str =
    r#"    if ($var(user) =~ "^1[0-2][0-9][0-9]$") $var(password) = "phone-" + $var(user);"#;

/// The password of one of them.
pub fn phone_password(user: &str) -> String {
    format!("phone-{user}")
}

/// Start of a request's log line, behind Kamailio's own prefix.
const MARK: &str = "lab-request ";

/// Contents of a failed login's log line before the address; nothing else of the request, which
/// could forge it.
pub const FAILURE: &str = "Failed auth from ";

/// Options of a registrar.
#[derive(Debug, Clone)]
pub struct RegistrarOptions<'a> {
    /// Names and passwords.
    pub users: &'a [(&'a str, &'a str)],
    /// Whether it logs a line per request, which costs time and memory.
    pub log_requests: bool,
    /// A further file for its log, for programs that watch logs.
    pub log_file: Option<PathBuf>,
    /// The only CPU that it may use.
    pub cpu: Option<usize>,
    /// Whether the users 1000 to 1299 exist as well, with the passwords of [`phone_password`].
    pub phones: bool,
    /// Lifetime of a nonce in seconds.
    pub nonce_expire: u32,
    /// Where it sends HEP, if it does; then it takes TCP as well.
    pub hep: Option<&'a str>,
    /// Whether it takes TLS on port 5061, and WebSocket on both ports; only with HEP.
    pub is_encrypted: bool,
    /// Whether it takes TCP.
    pub tcp: bool,
}

/// The registrar's behaviour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// Normal.
    Fair,
    /// No responses.
    Quiet,
    /// All credentials are challenged again.
    Challenging,
    /// 403 to everything.
    Refusing,
}

impl Mood {
    /// The value of the variable in the configuration.
    const fn number(self) -> &'static str {
        match self {
            Self::Fair => "0",
            Self::Quiet => "1",
            Self::Challenging => "401",
            Self::Refusing => "403",
        }
    }
}

impl Default for RegistrarOptions<'_> {
    fn default() -> Self {
        Self {
            users: &USERS,
            log_requests: true,
            log_file: None,
            cpu: None,
            phones: false,
            nonce_expire: 300,
            hep: None,
            is_encrypted: false,
            tcp: false,
        }
    }
}

/// Kamailio in the foreground; ends when dropped.
#[derive(Debug)]
pub struct Registrar {
    process: Process,
    control: PathBuf,
}

/// A request that the registrar received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Time of its log line.
    pub at: SystemTime,
    /// Source address.
    pub source: String,
    /// Its method.
    pub method: String,
}

impl Registrar {
    /// Starts it on port 5060 of every address of the namespace, and waits until it serves.
    pub fn start(namespace: &Namespace, directory: &Path) -> Result<Self> {
        Self::start_with(namespace, directory, &RegistrarOptions::default())
    }

    /// With options.
    pub fn start_with(
        namespace: &Namespace,
        directory: &Path,
        options: &RegistrarOptions<'_>,
    ) -> Result<Self> {
        let file = directory.join("kamailio.cfg");
        let control = directory.join("kamailio.sock");
        let certificate = options.is_encrypted.then(|| Certificate::make(directory)).transpose()?;
        fs::write(&file, configuration(options, &control, certificate.as_ref()))
            .with_context(|| format!("cannot write {}", file.display()))?;
        let runtime = directory.join("kamailio");
        fs::create_dir_all(&runtime)
            .with_context(|| format!("cannot make {}", runtime.display()))?;
        let mut command = match options.cpu {
            Some(cpu) => {
                let mut command = namespace.command("taskset");
                command.args(["--cpu-list", &cpu.to_string(), "kamailio"]);
                command
            }
            None => namespace.command("kamailio"),
        };
        command.args(["-DD", "-E", "-m", "64", "-M", "8", "-Y"]).arg(&runtime);
        command.arg("-P").arg(runtime.join("kamailio.pid")).arg("-f").arg(&file);
        let mut process = match &options.log_file {
            Some(log) => Process::spawn_with_log("kamailio", &mut command, log)?,
            None => Process::spawn("kamailio", &mut command)?,
        };
        process.wait_line(Duration::from_secs(20), |line| line.text.contains("lab-ready"))?;
        Ok(Self { process, control })
    }

    /// Changes its behaviour, from the next request on.
    pub fn treat_everybody(&self, mood: Mood) -> Result<()> {
        self.remote(&["pv.shvSet", "mood", "int", mood.number()])
    }

    /// Sends a request from its port 5060, as to carriers.
    pub fn ask(&self, method: &str, to: SocketAddr) -> Result<()> {
        // Otherwise it would add a body.
        let headers = format!(
            "From: <sip:pbx@lab.example>\r\nTo: <sip:pbx@{to}>\r\nContact: <sip:pbx@{PBX_WAN}>\r\n\
             Content-Type: text/plain\r\n"
        );
        self.remote(&["tm.t_uac_start", method, &format!("sip:{to}"), ".", ".", &headers, "lab"])
    }

    /// A command over its control socket.
    fn remote(&self, arguments: &[&str]) -> Result<()> {
        let said = succeed(
            Command::new("kamcmd")
                .arg("-s")
                .arg(format!("unix:{}", self.control.display()))
                .args(arguments),
        )?;
        // It succeeds even when refused.
        if said.starts_with("error") {
            bail!("Kamailio refuses {arguments:?}: {said}");
        }
        Ok(())
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.process.lines().iter().filter_map(request).collect()
    }

    /// Number of requests from one source.
    pub fn received_from(&self, source: impl Into<IpAddr>) -> usize {
        let source = source.into().to_string();
        self.requests().iter().filter(|request| request.source == source).count()
    }

    /// Number of requests of one method from one source.
    pub fn received_of(&self, source: impl Into<IpAddr>, method: &str) -> usize {
        let source = source.into().to_string();
        let is_one = |request: &&Request| {
            request.source == source && request.method.eq_ignore_ascii_case(method)
        };
        self.requests().iter().filter(is_one).count()
    }

    /// Number of requests by source.
    pub fn sources(&self) -> BTreeMap<String, usize> {
        let mut sources = BTreeMap::new();
        for request in self.requests() {
            *sources.entry(request.source).or_default() += 1;
        }
        sources
    }

    /// Times of the logged failed logins of one source, in order.
    pub fn failures_of(&self, source: impl Into<IpAddr>) -> Vec<SystemTime> {
        let mark = format!("{FAILURE}{}", source.into());
        let failed = |line: &Line| line.text.ends_with(&mark);
        self.process.lines().into_iter().filter(failed).map(|line| line.at).collect()
    }

    /// The end of its log, for messages.
    pub fn log(&self) -> String {
        self.process.tail()
    }
}

fn request(line: &Line) -> Option<Request> {
    let (_, fields) = line.text.split_once(MARK)?;
    let (source, method) = fields.split_once(' ')?;
    Some(Request { at: line.at, source: source.to_owned(), method: method.trim().to_owned() })
}

/// Unknown users get 404, known ones a challenge: stock behaviour, on which enumeration relies.
fn configuration(
    options: &RegistrarOptions<'_>,
    control: &Path,
    certificate: Option<&Certificate>,
) -> String {
    let mut passwords = String::new();
    for (user, password) in options.users {
        // Writing to a string is infallible.
        let _ =
            writeln!(passwords, "        case \"{user}\": $var(password) = \"{password}\"; break;");
    }
    let request_line =
        if options.log_requests { r#"xlog("L_ALERT", "lab-request $si $rm\n");"# } else { "" };
    let encrypted = certificate.map(|Certificate { key, certificate }| {
        ENCRYPTED
            .replace("@KEY@", &key.display().to_string())
            .replace("@CERTIFICATE@", &certificate.display().to_string())
    });
    let trace = options.hep.map_or(String::new(), |to| TRACE.replace("@HEP@", to));
    let takes_tcp = options.tcp || options.hep.is_some();
    let listen = if takes_tcp { "listen=tcp:0.0.0.0:5060" } else { "" };
    TEMPLATE
        .replace("@LISTEN_TCP@", listen)
        .replace("@TRACE@", &(trace + &encrypted.unwrap_or_default()))
        .replace("@PASSWORDS@", passwords.trim_end())
        .replace("@LOG_REQUEST@", request_line)
        .replace("@FAILURE@", FAILURE)
        .replace("@PHONES@", if options.phones { PHONES } else { "" })
        .replace("@NONCE_EXPIRE@", &options.nonce_expire.to_string())
        .replace("@CONTROL@", &control.display().to_string())
        // Its address in forwarded requests, which phones can reach.
        .replace("@ADVERTISED@", &PBX_WAN.to_string())
}

/// What makes it send HEP, as the manual says.
const TRACE: &str = r#"loadmodule "siptrace.so"
modparam("siptrace", "duplicate_uri", "sip:@HEP@")
modparam("siptrace", "hep_mode_on", 1)
modparam("siptrace", "hep_version", 3)
modparam("siptrace", "trace_to_database", 0)
modparam("siptrace", "trace_on", 1)
modparam("siptrace", "trace_mode", 1)"#;

/// What makes it take TLS and WebSocket. The first line must stand before what listens.
const ENCRYPTED: &str = r#"
enable_tls=yes
tcp_accept_no_cl=yes
listen=tls:0.0.0.0:5061
loadmodule "tls.so"
modparam("tls", "tls_method", "TLSv1.2+")
modparam("tls", "private_key", "@KEY@")
modparam("tls", "certificate", "@CERTIFICATE@")
loadmodule "xhttp.so"
loadmodule "websocket.so"
event_route[xhttp:request] {
    if ($rm =~ "GET" && $hdr(Upgrade) =~ "websocket") {
        ws_handle_handshake();
        exit;
    }
    xhttp_reply("404", "Not Found", "", "");
}"#;

const TEMPLATE: &str = include_str!("kamailio.cfg");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_its_log() {
        let line =
            |text: &str| Line { at: SystemTime::UNIX_EPOCH, error: true, text: text.to_owned() };
        let found =
            request(&line(" 0(42) ALERT: <script>: lab-request 198.51.100.66 REGISTER")).unwrap();
        assert_eq!((found.source.as_str(), found.method.as_str()), ("198.51.100.66", "REGISTER"));
        assert_eq!(request(&line("anything else")), None);
    }
}
