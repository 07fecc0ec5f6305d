//! A real registrar: Kamailio with digest authentication, its users in its configuration, and one log line per request.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

use crate::namespace::Namespace;
use crate::process::{Line, Process};

/// The users of [`Registrar::start`]: name and password.
pub const USERS: [(&str, &str); 3] = [("alice", "wonderland-7"), ("bob", "builder-8"), ("101", "not-in-any-list")];

/// What a log line of a request starts with, after whatever Kamailio puts before it.
const MARK: &str = "lab-request ";

/// What a log line of a failed login contains, before the address that failed; no more of the request, so that nobody can
/// make it tell something else.
pub const FAILURE: &str = "Failed auth from ";

/// What may differ from one registrar to the next.
#[derive(Debug, Clone)]
pub struct RegistrarOptions<'a> {
    /// Names and passwords.
    pub users: &'a [(&'a str, &'a str)],
    /// Whether it logs a line per request, which costs it a little time, and us memory.
    pub log_requests: bool,
    /// A file that its log goes to as well, for programs that watch logs.
    pub log_file: Option<PathBuf>,
    /// The only CPU that it may use.
    pub cpu: Option<usize>,
}

impl Default for RegistrarOptions<'_> {
    fn default() -> Self {
        Self { users: &USERS, log_requests: true, log_file: None, cpu: None }
    }
}

/// Kamailio in the foreground; ends when dropped.
#[derive(Debug)]
pub struct Registrar {
    process: Process,
}

/// One request that the registrar received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// When its log line came.
    pub at: SystemTime,
    /// The address it came from.
    pub source: String,
    /// Its method.
    pub method: String,
}

impl Registrar {
    /// Starts it on port 5060 of every address of the namespace, and waits until it serves.
    pub fn start(namespace: &Namespace, directory: &Path) -> Result<Self> {
        Self::start_with(namespace, directory, &RegistrarOptions::default())
    }

    /// The same with other options.
    pub fn start_with(namespace: &Namespace, directory: &Path, options: &RegistrarOptions<'_>) -> Result<Self> {
        let file = directory.join("kamailio.cfg");
        fs::write(&file, configuration(options)).with_context(|| format!("cannot write {}", file.display()))?;
        let runtime = directory.join("kamailio");
        fs::create_dir_all(&runtime).with_context(|| format!("cannot make {}", runtime.display()))?;
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
        Ok(Self { process })
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<Request> {
        self.process.lines().iter().filter_map(request).collect()
    }

    /// How many requests came from one source.
    pub fn received_from(&self, source: impl Into<IpAddr>) -> usize {
        let source = source.into().to_string();
        self.requests().iter().filter(|request| request.source == source).count()
    }

    /// How many requests came from each source.
    pub fn sources(&self) -> BTreeMap<String, usize> {
        let mut sources = BTreeMap::new();
        for request in self.requests() {
            *sources.entry(request.source).or_default() += 1;
        }
        sources
    }

    /// When it logged the failed logins of one source, in this order.
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

/// Unknown users get 404, known ones a challenge: what stock configurations do, and what enumeration relies on.
fn configuration(options: &RegistrarOptions<'_>) -> String {
    let mut passwords = String::new();
    for (user, password) in options.users {
        // Writing to a string cannot fail.
        let _ = writeln!(passwords, "        case \"{user}\": $var(password) = \"{password}\"; break;");
    }
    let request_line = if options.log_requests { r#"xlog("L_ALERT", "lab-request $si $rm\n");"# } else { "" };
    TEMPLATE
        .replace("@PASSWORDS@", passwords.trim_end())
        .replace("@LOG_REQUEST@", request_line)
        .replace("@FAILURE@", FAILURE)
}

const TEMPLATE: &str = r##"#!KAMAILIO
debug=1
log_stderror=yes
children=2
tcp_children=1
auto_aliases=no
dns=no
rev_dns=no
listen=udp:0.0.0.0:5060
listen=udp:[::]:5060
server_header="Server: lab"

loadmodule "tm.so"
loadmodule "sl.so"
loadmodule "rr.so"
loadmodule "pv.so"
loadmodule "maxfwd.so"
loadmodule "usrloc.so"
loadmodule "registrar.so"
loadmodule "textops.so"
loadmodule "siputils.so"
loadmodule "xlog.so"
loadmodule "auth.so"

modparam("usrloc", "db_mode", 0)
modparam("auth", "nonce_expire", 300)
modparam("registrar", "max_contacts", 10)

event_route[core:worker-one-init] {
    xlog("L_ALERT", "lab-ready\n");
}

# Sets the password of the user in $var(user); 404 for those that do not exist.
route[USER] {
    $var(password) = "";
    switch ($var(user)) {
@PASSWORDS@
        default: break;
    }
    if ($var(password) == "") {
        sl_send_reply("404", "Not Found");
        exit;
    }
}

request_route {
    @LOG_REQUEST@
    if (!mf_process_maxfwd_header("10")) {
        sl_send_reply("483", "Too Many Hops");
        exit;
    }
    if (is_method("ACK|CANCEL|BYE")) {
        if (!is_method("ACK")) sl_send_reply("481", "Call Does Not Exist");
        exit;
    }
    if (is_method("REGISTER")) {
        $var(user) = $tU;
        route(USER);
        if (!pv_www_authenticate("lab.example", "$var(password)", "0")) {
            # The first request has no credentials yet, and is no failure.
            if (is_present_hf("Authorization")) xlog("L_ALERT", "$TF @FAILURE@$si\n");
            www_challenge("lab.example", "0");
            exit;
        }
        if (!save("location")) sl_reply_error();
        exit;
    }
    if (is_method("OPTIONS")) {
        if ($rU != $null && $rU != "100" && $rU != "ping") {
            $var(user) = $rU;
            route(USER);
        }
        sl_send_reply("200", "OK");
        exit;
    }
    if (is_method("INVITE")) {
        $var(user) = $rU;
        route(USER);
        if (!pv_proxy_authenticate("lab.example", "$var(password)", "0")) {
            proxy_challenge("lab.example", "0");
            exit;
        }
        sl_send_reply("486", "Busy Here");
        exit;
    }
    sl_send_reply("200", "OK");
}
"##;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_its_log() {
        let line = |text: &str| Line { at: SystemTime::UNIX_EPOCH, error: true, text: text.to_owned() };
        let found = request(&line(" 0(42) ALERT: <script>: lab-request 198.51.100.66 REGISTER")).unwrap();
        assert_eq!((found.source.as_str(), found.method.as_str()), ("198.51.100.66", "REGISTER"));
        assert_eq!(request(&line("anything else")), None);
    }
}
