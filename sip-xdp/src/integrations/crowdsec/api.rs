//! Client of CrowdSec's local API, as a machine that publishes bans: login, alerts, deletion of
//! decisions.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use ureq::http::Request;
use ureq::{Agent, Error};

use super::queue::Ban;
use crate::config::CrowdsecConfig;
use crate::dataplane::counters;
use crate::feeds::fetch;
use crate::net::network::Network;

/// Timeout of a request.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum length of a response, in bytes.
const LONGEST_ANSWER: u64 = 4 << 20;

/// Maximum length of a password, in bytes.
const LONGEST_PASSWORD: u64 = 4_096;

/// Time before its expiry at which a token is renewed.
const EARLY: Duration = Duration::from_secs(60);

/// Why a request failed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Temporary: worth a retry.
    Later(String),
    /// Permanent: a retry would be refused as well.
    Refused(String),
}

impl From<String> for Trouble {
    fn from(reason: String) -> Self {
        Self::Later(reason)
    }
}

/// One machine's session at one local API.
pub(super) struct Client {
    agent: Agent,
    base: String,
    login: String,
    password_file: PathBuf,
    own: String,
    origin: String,
    token: Option<Token>,
}

#[derive(Deserialize)]
struct Token {
    token: String,
    expire: Timestamp,
}

#[derive(Deserialize)]
struct Alert {
    decisions: Option<Vec<Decision>>,
}

#[derive(Deserialize)]
struct Decision {
    id: u64,
    #[serde(default)]
    scenario: String,
    #[serde(default)]
    duration: String,
}

impl Client {
    pub(super) fn new(config: &CrowdsecConfig) -> Self {
        let agent = Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .http_status_as_error(false)
            // The password must not follow redirects to another server.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("sip-xdp/", env!("CARGO_PKG_VERSION")))
            .max_idle_connections(0)
            .build()
            .new_agent();
        Self {
            agent,
            base: config.url.trim_end_matches('/').to_owned(),
            login: config.login.clone(),
            password_file: config.password_file.clone(),
            own: config.own_scenarios().unwrap_or_default(),
            origin: config.origin.clone(),
            token: None,
        }
    }

    /// Publishes bans.
    pub(super) fn publish(&mut self, bans: &[Ban]) -> Result<(), Trouble> {
        let now = counters::now();
        let alerts: Vec<_> =
            bans.iter().filter_map(|ban| alert(ban, &self.own, &self.origin, now)).collect();
        if alerts.is_empty() {
            return Ok(());
        }
        self.ask("POST", "/v1/alerts", Some(&Value::Array(alerts))).map(drop)
    }

    /// Deletes this machine's decisions about exactly this network. Returns their number.
    pub(super) fn withdraw(&mut self, network: &Network) -> Result<u64, Trouble> {
        let (_, value) = scope(network);
        let path = format!("/v1/alerts?value={value}&has_active_decision=true&limit=0");
        let answer = self.ask("GET", &path, None)?;
        let alerts: Option<Vec<Alert>> = serde_json::from_str(&answer)
            .map_err(|_| "the answer is not CrowdSec's JSON".to_owned())?;
        let decisions =
            alerts.into_iter().flatten().flat_map(|alert| alert.decisions.unwrap_or_default());
        // Others may have decided about it as well, and expired decisions need no deletion.
        let ours = decisions
            .filter(|it| it.scenario.starts_with(&self.own) && !it.duration.starts_with('-'));
        let ids: Vec<_> = ours.map(|decision| decision.id).collect();
        for id in &ids {
            match self.ask("DELETE", &format!("/v1/decisions/{id}"), None) {
                // Deleted by somebody else meanwhile.
                Ok(_) | Err(Trouble::Refused(_)) => {}
                Err(later) => return Err(later),
            }
        }
        Ok(ids.len() as u64)
    }

    /// Sends an authenticated request, with a new token if the server rejects the old one.
    fn ask(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<String, Trouble> {
        let is_fresh =
            self.token.as_ref().is_some_and(|token| token.expire > counters::now() + EARLY);
        if !is_fresh {
            self.token = Some(self.log_in()?);
        }
        let (mut status, mut answer) = self.request(method, path, body)?;
        if status == 401 && is_fresh {
            self.token = Some(self.log_in()?);
            (status, answer) = self.request(method, path, body)?;
        }
        match status {
            200..300 => Ok(answer),
            400 | 404 | 413 | 422 => Err(Trouble::Refused(format!(
                "HTTP {status}: it refuses what we tell{}",
                server_error(&answer)
            ))),
            401 | 403 => {
                self.token = None;
                Err(Trouble::Later(format!("HTTP {status}: access is refused")))
            }
            _ => Err(Trouble::Later(format!("HTTP {status}{}", server_error(&answer)))),
        }
    }

    fn log_in(&self) -> Result<Token, Trouble> {
        let body =
            json!({ "machine_id": self.login, "password": self.password()?, "scenarios": [] });
        let (status, answer) = self.request("POST", "/v1/watchers/login", Some(&body))?;
        match status {
            200 => {}
            401 | 403 => {
                return Err(Trouble::Later(format!(
                    "HTTP {status}: it does not let {} in; `cscli machines list` shows whom it \
                     knows, and {} must have the \
                     password",
                    self.login,
                    self.password_file.display()
                )));
            }
            _ => {
                return Err(Trouble::Later(format!(
                    "HTTP {status} when logging in{}",
                    server_error(&answer)
                )));
            }
        }
        serde_json::from_str(&answer)
            .map_err(|_| Trouble::Later("the answer is not CrowdSec's JSON".to_owned()))
    }

    fn request(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(u16, String), Trouble> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header("Content-Type", "application/json");
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {}", token.token));
        }
        let text = body.map(Value::to_string).unwrap_or_default();
        let request =
            request.body(text).map_err(|_| "the url names no valid address".to_owned())?;
        let answer = self.agent.run(request).map_err(|error| match error {
            Error::Timeout(_) => format!("no whole answer within {} s", TIMEOUT.as_secs()),
            error => fetch::error_text(&error),
        })?;
        let status = answer.status().as_u16();
        let mut text = String::new();
        let reader = answer.into_body().into_reader();
        reader
            .take(LONGEST_ANSWER)
            .read_to_string(&mut text)
            .map_err(|_| "the answer is cut off".to_owned())?;
        Ok((status, text))
    }

    fn password(&self) -> Result<String, Trouble> {
        let path = self.password_file.display();
        let mut text = String::new();
        let file = File::open(&self.password_file)
            .map_err(|error| format!("{path} cannot be read: {error}"))?;
        // The library's own error might quote the file's contents.
        file.take(LONGEST_PASSWORD)
            .read_to_string(&mut text)
            .map_err(|_| format!("{path} is no text"))?;
        let password = text.trim_end_matches(['\r', '\n']);
        if password.is_empty() || password.contains(['\r', '\n']) {
            return Err(Trouble::Later(format!(
                "{path} contains no password; write it alone on one line"
            )));
        }
        Ok(password.to_owned())
    }
}

/// The server's error message, appended to ours.
fn server_error(answer: &str) -> String {
    let message = serde_json::from_str::<Value>(answer)
        .ok()
        .and_then(|answer| Some(answer["message"].as_str()?.to_owned()));
    let short =
        |text: String| text.chars().filter(|c| !c.is_control()).take(160).collect::<String>();
    message.map_or_else(String::new, |message| format!(" ({})", short(message)))
}

/// CrowdSec's scope and value of a network: address or range.
fn scope(network: &Network) -> (&'static str, String) {
    (if network.is_host() { "Ip" } else { "Range" }, network.to_string())
}

/// A ban as an alert with one decision; `None` if it has ended.
fn alert(ban: &Ban, own: &str, origin: &str, now: Timestamp) -> Option<Value> {
    let (scope, value) = scope(&ban.network);
    let scenario = format!("{own}{}", ban.kind);
    let mut source = json!({ "scope": scope, "value": value });
    source[if scope == "Ip" { "ip" } else { "range" }] = value.clone().into();
    Some(json!({
        "scenario": scenario,
        "scenario_hash": "",
        "scenario_version": env!("CARGO_PKG_VERSION"),
        "message": ban.reason,
        "capacity": 0,
        "leakspeed": "0s",
        "events": [],
        "events_count": 1,
        "simulated": false,
        "source": source,
        "start_at": ban.since,
        // The decision's duration starts here.
        "stop_at": now,
        "decisions": [{
            "origin": origin,
            "type": "ban",
            "scope": scope,
            "value": value,
            "duration": format!("{}s", ban.left(now)?.as_secs()),
            "scenario": scenario,
        }],
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ban(network: &str) -> Ban {
        Ban {
            network: network.parse().unwrap(),
            kind: "rejected".to_owned(),
            reason: "10 \"passwords\"".to_owned(),
            since: "2026-01-02T03:04:05Z".parse().unwrap(),
            until: Some("2026-01-02T03:14:05Z".parse().unwrap()),
        }
    }

    #[test]
    fn a_ban_becomes_an_alert_with_a_decision() {
        let now = "2026-01-02T03:05:05Z".parse().unwrap();
        let alert = |network: &str| alert(&ban(network), "sip-xdp/gw1/", "crowdsec", now).unwrap();
        let host = alert("192.0.2.7");
        assert_eq!(
            host["source"],
            json!({ "scope": "Ip", "value": "192.0.2.7", "ip": "192.0.2.7" })
        );
        let expected = json!({
            "origin": "crowdsec", "type": "ban", "scope": "Ip", "value": "192.0.2.7",
            "duration": "540s", "scenario": "sip-xdp/gw1/rejected",
        });
        assert_eq!(host["decisions"], json!([expected]));
        assert_eq!(host["stop_at"], "2026-01-02T03:05:05Z");
        let range = alert("2001:db8:1::/64");
        assert_eq!(range["source"]["range"], "2001:db8:1::/64");
        assert_eq!(range["decisions"][0]["scope"], "Range");
        let late = "2026-01-02T03:14:05Z".parse().unwrap();
        assert_eq!(super::alert(&ban("192.0.2.7"), "", "", late), None);
    }

    #[test]
    fn server_errors_are_shortened() {
        assert_eq!(server_error("{\"message\":\"no\\nthanks\"}"), " (nothanks)");
        assert!(server_error(&format!("{{\"message\":\"{}\"}}", "x".repeat(9_999))).len() < 200);
        assert_eq!(server_error("<html>"), "");
    }

    #[test]
    fn a_password_is_never_quoted() {
        let directory = tempfile::tempdir().unwrap();
        let password_file = directory.path().join("password");
        let client = Client::new(&CrowdsecConfig {
            password_file: password_file.clone(),
            ..CrowdsecConfig::default()
        });
        for (text, is_one) in [("sEcret one\n", true), ("", false), ("sEcret\nsecond", false)] {
            std::fs::write(&password_file, text).unwrap();
            match client.password() {
                Ok(password) => assert!(is_one && password == text.trim_end()),
                Err(trouble) => {
                    assert!(!is_one && !format!("{trouble:?}").contains("sEcret"), "{trouble:?}")
                }
            }
        }
    }
}
