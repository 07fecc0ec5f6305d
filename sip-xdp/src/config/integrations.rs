//! `[notify]` and `[crowdsec]`: other recipients of the daemon's decisions.

use std::path::PathBuf;

use anyhow::{Result, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Rate, Span, check_rate};

/// Notification of people and programs.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(default)]
pub struct NotifyConfig {
    /// A program with arguments, started for each message; empty for none.
    pub command: Vec<String>,
    /// URL to which each message is posted; empty for none.
    pub webhook: String,
    /// Events that are sent.
    pub events: Vec<Occasion>,
    /// Maximum rate of messages; the next one after a gap has the number left out.
    pub limit: Rate,
    /// Timeout of the program and the server.
    pub timeout: Span,
}

/// Events that can be sent, by their names in `watch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Occasion {
    /// A ban.
    Ban,
    /// The end of a ban.
    Unban,
    /// A storm: more new sources than are plausible.
    Storm,
    /// The registrar rejects users that it accepted before.
    RegistrarFailing,
    /// The server's responses are not seen.
    UnseenResponses,
    /// Many sources try passwords of one user.
    Sprayed,
    /// A phone is registered at a blocked address.
    Conflict,
    /// A feed fails, is refused, has expired, or has recovered.
    Feed,
    /// A table is nearly full.
    NearlyFull,
}

impl Occasion {
    /// The name of its event.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ban => "ban",
            Self::Unban => "unban",
            Self::Storm => "storm",
            Self::RegistrarFailing => "registrar_failing",
            Self::UnseenResponses => "unseen_responses",
            Self::Sprayed => "sprayed",
            Self::Conflict => "conflict",
            Self::Feed => "feed",
            Self::NearlyFull => "nearly_full",
        }
    }
}

/// Publication of bans to a CrowdSec local API.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(default)]
pub struct CrowdsecConfig {
    /// Whether bans are published.
    pub publish: bool,
    /// URL of the API.
    pub url: String,
    /// Login of this machine there, unique to it.
    pub login: String,
    /// File with the password.
    pub password_file: PathBuf,
    /// Prefix of scenario names; login and kind of evidence follow.
    pub scenario: String,
    /// Origin of the decisions, in CrowdSec's sense.
    pub origin: String,
    /// Include level 0 bans.
    pub unproven: bool,
    /// Include entries of operators.
    pub manual: bool,
}

impl Default for NotifyConfig {
    fn default() -> Self {
        Self {
            command: Vec::new(),
            webhook: String::new(),
            events: vec![
                Occasion::Ban,
                Occasion::Storm,
                Occasion::RegistrarFailing,
                Occasion::Feed,
            ],
            limit: Rate { count: 10, per: Span::seconds(60) },
            timeout: Span::seconds(10),
        }
    }
}

impl Default for CrowdsecConfig {
    fn default() -> Self {
        Self {
            publish: false,
            url: String::new(),
            login: String::new(),
            password_file: PathBuf::new(),
            scenario: "sip-xdp".to_owned(),
            // Some versions of `cscli decisions list` hide other origins.
            origin: "crowdsec".to_owned(),
            unproven: false,
            manual: false,
        }
    }
}

impl NotifyConfig {
    /// Whether there is any recipient.
    pub fn is_on(&self) -> bool {
        !self.command.is_empty() || !self.webhook.is_empty()
    }

    pub(super) fn check(&self) -> Result<()> {
        if let Some(program) = self.command.first() {
            if program.is_empty() {
                bail!(
                    "notify.command begins with an empty string; name a program, or leave it out"
                );
            }
            if program.contains(char::is_whitespace) {
                bail!(
                    "notify.command begins with \"{program}\", which is no program; write it and \
                     each of its arguments as a \
                     string of its own"
                );
            }
        }
        if self.command.iter().any(|word| word.contains('\0')) {
            bail!("notify.command contains a NUL, which no argument can");
        }
        if !self.webhook.is_empty() {
            check_url("notify.webhook", &self.webhook)?;
        }
        check_rate("notify.limit", self.limit.count, self.limit.per)?;
        if self.timeout < Span::seconds(1) || self.timeout > Span::seconds(60) {
            bail!("notify.timeout = \"{}\" is out of range; use 1s to 60s", self.timeout);
        }
        Ok(())
    }
}

impl CrowdsecConfig {
    /// Prefix of all scenarios that this machine publishes; `None` without a login.
    pub fn own_scenarios(&self) -> Option<String> {
        (!self.login.is_empty()).then(|| format!("{}/{}/", self.scenario, self.login))
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.publish {
            for (key, is_missing) in [
                ("url", self.url.is_empty()),
                ("login", self.login.is_empty()),
                ("password_file", self.password_file.as_os_str().is_empty()),
            ] {
                if is_missing {
                    bail!(
                        "crowdsec.publish needs crowdsec.{key}; `cscli machines add NAME` makes a \
                         login and a password"
                    );
                }
            }
        }
        if !self.url.is_empty() {
            check_url("crowdsec.url", &self.url)?;
        }
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte);
        if self.login.len() > 64 || !self.login.bytes().all(is_plain) {
            bail!(
                "crowdsec.login = \"{}\" is no name; use up to 64 of a-z, 0-9 and \"-_.@\"",
                self.login
            );
        }
        for (key, text) in [("scenario", &self.scenario), ("origin", &self.origin)] {
            if text.is_empty()
                || text.len() > 64
                || !text.bytes().all(|byte| is_plain(byte) || b"/:".contains(&byte))
            {
                bail!(
                    "crowdsec.{key} = \"{text}\" is no name; use up to 64 of a-z, 0-9 \
                     and \"-_.@/:\""
                );
            }
        }
        if ["CAPI", "lists"].contains(&self.origin.as_str()) {
            bail!(
                "crowdsec.origin = \"{}\" is CrowdSec's own name for what it fetches; use another",
                self.origin
            );
        }
        Ok(())
    }
}

/// Checks that a URL is valid for HTTP requests.
fn check_url(key: &str, url: &str) -> Result<()> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let Some(host) =
        rest.and_then(|rest| rest.split(['/', '?']).next()).filter(|host| !host.is_empty())
    else {
        bail!("{key} is neither https://HOST/PATH nor http://HOST/PATH");
    };
    if host.contains('@') {
        bail!(
            "{key} contains a password, which would not be sent; put a token into its path instead"
        );
    }
    if url.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
        bail!("{key} contains blanks");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Config, FeedFormat};

    #[test]
    fn reads_what_people_write() {
        let config = Config::parse(
            "[notify]\ncommand = [\"/usr/local/bin/page\", \"--quiet\"]\nwebhook \
             = \"https://hooks.example/T0/B0\"\n\
             events = [\"ban\", \"registrar_failing\"]\nlimit = { count = 3, per = \"1h\" }\n\
             [crowdsec]\npublish = true\nurl = \"http://127.0.0.1:8080\"\nlogin = \"gw1\"\n\
             password_file = \"/etc/sip-xdp/crowdsec.password\"\n\
             [[feeds]]\nname = \"cs\"\nformat = \"crowdsec\"\nurl \
             = \"http://127.0.0.1:8080\"\nkey_file = \"/k\"\n\
             [[feeds]]\nname = \"own\"\nurl = \"file:///own\"\n",
        );
        let config = config.unwrap();
        assert!(config.notify.is_on() && config.notify.events.len() == 2);
        let own: Vec<_> =
            config.feeds.iter().map(|feed| (feed.format, feed.own.as_deref())).collect();
        assert_eq!(own, [(FeedFormat::Crowdsec, Some("sip-xdp/gw1/")), (FeedFormat::Auto, None)]);
        assert_eq!(Config::parse(&toml::to_string(&config).unwrap()).unwrap(), config);
        assert!(!Config::default().notify.is_on());
    }

    #[test]
    fn refuses_what_cannot_be_meant() {
        for (text, expected) in [
            ("[notify]\ncommand = [\"\"]", "an empty string"),
            ("[notify]\ncommand = [\"mail -s ban root\"]", "a string of its own"),
            ("[notify]\ncommand = \"mail\"", "invalid type: string"),
            ("[notify]\nwebhook = \"ftp://host/\"", "neither https://HOST"),
            ("[notify]\nwebhook = \"https:///path\"", "neither https://HOST"),
            ("[notify]\nwebhook = \"https://me:secret@host/\"", "contains a password"),
            ("[notify]\nwebhook = \"https://host/a b\"", "contains blanks"),
            ("[notify]\nevents = [\"bans\"]", "unknown variant `bans`"),
            ("[notify]\nlimit = { count = 0, per = \"1s\" }", "notify.limit.count = 0"),
            ("[notify]\ntimeout = \"5m\"", "use 1s to 60s"),
            ("[notify]\nwebhok = \"\"", "did you mean notify.webhook?"),
            ("[crowdsec]\npublish = true", "needs crowdsec.url"),
            (
                "[crowdsec]\npublish = true\nurl = \"http://h\"\nlogin = \"a\"",
                "needs crowdsec.password_file",
            ),
            ("[crowdsec]\nlogin = \"a/b\"", "is no name"),
            ("[crowdsec]\nscenario = \"\"", "is no name"),
            ("[crowdsec]\norigin = \"CAPI\"", "use another"),
            ("[crowdsec]\nurl = \"127.0.0.1:8080\"", "neither https://HOST"),
        ] {
            let error = Config::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
            assert!(!error.contains('\n') && !error.contains("secret"), "{error}");
        }
    }
}
