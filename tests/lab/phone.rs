//! A real user agent that registers with digest authentication: sipp.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::namespace::{Namespace, unique_name};
use crate::process::Process;
use crate::registrar::USERS;
use crate::topology::{PBX_LAN, PHONE};

/// One phone.
#[derive(Debug)]
pub struct Phone<'a> {
    namespace: &'a Namespace,
    directory: PathBuf,
    address: Ipv4Addr,
    registrar: Ipv4Addr,
    user: &'a str,
    password: &'a str,
}

/// The result of a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registration {
    /// Final status; 200 when registered.
    pub status: u16,
    /// Number of REGISTERs sent, including retransmissions; two without losses.
    pub sent: usize,
    /// Time taken.
    pub took: Duration,
}

impl<'a> Phone<'a> {
    /// The first user's phone, on the phones' side of the PBX.
    pub fn new(namespace: &'a Namespace, directory: &Path) -> Self {
        let (user, password) = USERS[0];
        Self {
            namespace,
            directory: directory.to_path_buf(),
            address: PHONE,
            registrar: PBX_LAN,
            user,
            password,
        }
    }

    /// With another user.
    #[must_use]
    pub fn user(mut self, user: &'a str, password: &'a str) -> Self {
        (self.user, self.password) = (user, password);
        self
    }

    /// With other addresses of phone and registrar.
    #[must_use]
    pub fn addresses(mut self, address: Ipv4Addr, registrar: Ipv4Addr) -> Self {
        (self.address, self.registrar) = (address, registrar);
        self
    }

    /// Registers once. Fails without a final response; a refusal is a result.
    pub fn register(&self) -> Result<Registration> {
        let scenario = self.directory.join("register.xml");
        if !scenario.exists() {
            fs::write(&scenario, SCENARIO)
                .with_context(|| format!("cannot write {}", scenario.display()))?;
        }
        let messages = self.directory.join(format!("{}-messages.log", unique_name()));
        let mut command = self.namespace.command("sipp");
        command
            .current_dir(&self.directory)
            .env("TERM", "dumb")
            .arg(self.registrar.to_string())
            .arg("-sf")
            .arg(&scenario)
            .args([
                "-i",
                &self.address.to_string(),
                "-s",
                self.user,
                "-au",
                self.user,
                "-ap",
                self.password,
            ])
            .args([
                "-m",
                "1",
                "-nostdin",
                "-nd",
                "-timeout",
                "20s",
                "-timeout_error",
                "-trace_msg",
                "-message_file",
            ])
            .arg(&messages);
        let start = Instant::now();
        let mut sipp = Process::spawn("sipp", &mut command)?;
        sipp.wait(Duration::from_secs(30))?;
        let took = start.elapsed();
        let log = fs::read_to_string(&messages)
            .with_context(|| format!("sipp left no messages; it said:\n{}", sipp.tail()))?;
        let Some(status) = last_status(&log) else {
            bail!("the phone got no final response in {took:?}; sipp said:\n{}", sipp.tail());
        };
        let sent = log.lines().filter(|line| line.starts_with("REGISTER sip:")).count();
        Ok(Registration { status, sent, took })
    }
}

/// The status of the last final response in sipp's message log.
fn last_status(log: &str) -> Option<u16> {
    log.lines()
        .filter_map(|line| line.strip_prefix("SIP/2.0 ")?.get(..3)?.parse().ok())
        .rfind(|status| *status >= 200)
}

/// REGISTER, challenge, REGISTER with credentials. Any final response to the second ends the
/// scenario.
const SCENARIO: &str = r#"<?xml version="1.0" encoding="ISO-8859-1" ?>
<scenario name="register">
  <send retrans="500"><![CDATA[
    REGISTER sip:[remote_ip] SIP/2.0
    Via: SIP/2.0/UDP [local_ip]:[local_port];branch=[branch];rport
    Max-Forwards: 70
    From: <sip:[service]@lab.example>;tag=[call_number][pid]
    To: <sip:[service]@lab.example>
    Call-ID: [call_id]
    CSeq: 1 REGISTER
    Contact: <sip:[service]@[local_ip]:[local_port]>
    Expires: 300
    User-Agent: lab phone
    Content-Length: 0

  ]]></send>
  <recv response="401" auth="true" timeout="8000" />
  <send retrans="500"><![CDATA[
    REGISTER sip:[remote_ip] SIP/2.0
    Via: SIP/2.0/UDP [local_ip]:[local_port];branch=[branch];rport
    Max-Forwards: 70
    From: <sip:[service]@lab.example>;tag=[call_number][pid]
    To: <sip:[service]@lab.example>
    Call-ID: [call_id]
    CSeq: 2 REGISTER
    Contact: <sip:[service]@[local_ip]:[local_port]>
    Expires: 300
    User-Agent: lab phone
    [authentication]
    Content-Length: 0

  ]]></send>
  <recv response="401" optional="true" next="refused" />
  <recv response="403" optional="true" next="refused" />
  <recv response="404" optional="true" next="refused" />
  <recv response="200" timeout="8000" />
  <label id="refused" />
</scenario>
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_final_response_counts() {
        assert_eq!(
            last_status("REGISTER x\nSIP/2.0 401 Unauthorized\nSIP/2.0 100 Trying\n"),
            Some(401)
        );
        assert_eq!(last_status("SIP/2.0 401 Unauthorized\nSIP/2.0 200 OK\n"), Some(200));
        assert_eq!(last_status("SIP/2.0 100 Trying\n"), None);
    }
}
