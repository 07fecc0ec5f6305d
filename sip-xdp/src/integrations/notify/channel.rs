//! Notification channels: a started program, and an HTTP server.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use ureq::{Agent, Error};

use super::message::Message;
use crate::config::NotifyConfig;
use crate::feeds::fetch;

/// Poll interval for the end of a program.
const POLL: Duration = Duration::from_millis(20);

/// A notification channel.
pub(super) enum Channel {
    /// A program and its arguments.
    Command(Vec<String>),
    /// An HTTP client and the URL, which may be secret.
    Webhook(Agent, String),
}

impl Channel {
    /// The configured channels.
    pub(super) fn all(config: &NotifyConfig) -> Vec<Self> {
        let mut all = Vec::new();
        if !config.command.is_empty() {
            all.push(Self::Command(config.command.clone()));
        }
        if !config.webhook.is_empty() {
            let agent = Agent::config_builder()
                .timeout_global(Some(config.timeout.0))
                .http_status_as_error(false)
                .max_redirects(0)
                .max_redirects_will_error(false)
                .user_agent(concat!("sip-xdp/", env!("CARGO_PKG_VERSION"), " (+notify)"))
                .max_idle_connections(0)
                .build()
                .new_agent();
            all.push(Self::Webhook(agent, config.webhook.clone()));
        }
        all
    }

    /// Its name in logs and `status`.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Command(_) => "command",
            Self::Webhook(..) => "webhook",
        }
    }

    /// Sends a message. The error contains nothing secret.
    pub(super) fn send(&self, message: &Message, timeout: Duration) -> Result<(), String> {
        match self {
            Self::Command(words) => run(words, message, timeout),
            Self::Webhook(agent, url) => post(agent, url, message, timeout),
        }
    }
}

fn post(agent: &Agent, url: &str, message: &Message, timeout: Duration) -> Result<(), String> {
    let request = agent.post(url).header("Content-Type", "application/json");
    match request.send(message.json.as_bytes()) {
        Ok(answer) if answer.status().is_success() => Ok(()),
        Ok(answer) => Err(format!("HTTP {}", answer.status().as_u16())),
        Err(Error::Timeout(_)) => Err(format!("no answer within {} s", timeout.as_secs())),
        Err(error) => Err(fetch::error_text(&error)),
    }
}

/// Starts a program with a message on its standard input, and waits for it. On a timeout it is
/// killed together with its children.
fn run(words: &[String], message: &Message, timeout: Duration) -> Result<(), String> {
    let (program, arguments) = words.split_first().ok_or("there is no program")?;
    let mut command = Command::new(program);
    command.args(arguments).envs(message.variables.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    // A process group of its own, so that its children can be killed with it.
    let mut child = command
        .process_group(0)
        .spawn()
        .map_err(|error| format!("{program} cannot be started: {error}"))?;
    if let Some(mut input) = child.stdin.take() {
        // It fits into the pipe buffer. Programs need not read it.
        let _ = writeln!(input, "{}", message.json);
    }
    match wait(&mut child, timeout) {
        Ok(Some(status)) if status.success() => Ok(()),
        Ok(Some(status)) => Err(format!("{program} failed: {status}")),
        Ok(None) => {
            // The process id cannot be reused before it is waited for.
            let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
            let _ = child.wait();
            Err(format!("{program} took more than {} s and was killed", timeout.as_secs()))
        }
        Err(error) => Err(format!("{program} cannot be waited for: {error}")),
    }
}

/// Waits for a child; `None` on a timeout.
fn wait(child: &mut Child, timeout: Duration) -> std::io::Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() >= timeout {
            return Ok(None);
        }
        thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::super::gate::Suppressed;
    use super::*;

    fn shell(script: &str) -> Channel {
        Channel::Command(["/bin/sh", "-c", script].map(str::to_owned).into())
    }

    fn message() -> Message {
        Message::summary(&Suppressed::from([("ban".to_owned(), 2)]))
    }

    #[test]
    fn a_program_gets_the_message() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("told").display().to_string();
        let script = format!("{{ cat; echo \"$SIP_XDP_EVENT $SIP_XDP_SUPPRESSED\"; }} > {path}");
        let message = message();
        shell(&script).send(&message, Duration::from_secs(60)).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            format!("{}\nsuppressed 2\n", message.json)
        );
    }

    #[test]
    fn errors_are_reported() {
        let patience = Duration::from_secs(60);
        let error = shell("exit 3").send(&message(), patience).unwrap_err();
        assert_eq!(error, "/bin/sh failed: exit status: 3");
        let missing = Channel::Command(vec!["/nonexistent/page".to_owned()]);
        assert!(
            missing
                .send(&message(), patience)
                .unwrap_err()
                .contains("/nonexistent/page cannot be started")
        );
    }

    #[test]
    fn a_program_that_hangs_is_killed_with_what_it_started() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        // The shell waits for a child that would outlive the test.
        let script = format!("sleep 1000 & echo $! > {}; wait", path.display());
        let error = shell(&script).send(&message(), Duration::from_secs(1)).unwrap_err();
        assert_eq!(error, "/bin/sh took more than 1 s and was killed");
        let pid = std::fs::read_to_string(&path).unwrap();
        let is_gone = || {
            let stat =
                std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
            stat.is_empty()
                || stat
                    .rsplit(')')
                    .next()
                    .is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X']))
        };
        let start = Instant::now();
        while !is_gone() && start.elapsed() < Duration::from_secs(10) {
            thread::sleep(POLL);
        }
        assert!(is_gone());
    }

    #[test]
    fn a_server_that_is_not_there_is_no_secret() {
        // The discard port of the loopback interface has no listener.
        let config = NotifyConfig {
            webhook: "http://127.0.0.1:9/sEcret".to_owned(),
            ..NotifyConfig::default()
        };
        let error = Channel::all(&config)[0].send(&message(), Duration::from_secs(5)).unwrap_err();
        assert!(!error.contains("sEcret") && !error.is_empty(), "{error}");
    }
}
