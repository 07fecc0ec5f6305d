//! `config`: the configuration file.

use anyhow::Result;
use clap::Subcommand;
use serde_json::json;
use sip_xdp::daemon::Overrides;
use sip_xdp::sys::paths::Paths;

use super::Output;

/// The configuration file.
#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Check the configuration file
    Check,
    /// Print the effective configuration: the file over the defaults
    Show,
}

impl Config {
    pub(crate) fn execute(
        self,
        paths: &Paths,
        config_required: bool,
        output: Output,
    ) -> Result<()> {
        let is_check = matches!(self, Self::Check);
        let overrides = Overrides {
            config_required: config_required || (is_check && paths.config.exists()),
            ..Overrides::default()
        };
        let config = overrides.read(paths)?;
        if is_check {
            let exists = paths.config.exists();
            let answer = json!({ "valid": true, "file": paths.config, "exists": exists });
            return output.print(&answer, |_| {
                if exists {
                    format!("{} is valid", paths.config.display())
                } else {
                    format!("{} does not exist; the defaults apply", paths.config.display())
                }
            });
        }
        let toml = toml::to_string(&config)?;
        output.print(&config, |_| toml)
    }
}
