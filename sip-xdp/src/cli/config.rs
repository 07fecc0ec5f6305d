//! `config`: the configuration file.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Subcommand;
use schemars::JsonSchema;
use serde::Serialize;
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

/// A configuration without errors; what is wrong with another is said on standard error.
#[derive(Debug, JsonSchema, Serialize)]
pub(super) struct Checked {
    /// Always true.
    #[schemars(extend("const" = true))]
    valid: bool,
    /// The configuration file.
    file: PathBuf,
    /// Whether it exists; without a file every key has its default.
    exists: bool,
    /// What is valid and probably not meant.
    warnings: Vec<String>,
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
            let mut warnings = config.warnings();
            let there = |name: &&String| Path::new("/sys/class/net").join(name).exists();
            warnings.extend(config.interfaces.iter().filter(|name| !there(name)).map(|name| {
                format!("there is no interface {name:?} now; it is filtered when it comes")
            }));
            let checked = Checked { valid: true, file: paths.config.clone(), exists, warnings };
            return output.print(&checked, |checked| {
                let mut text = if exists {
                    format!("{} is valid\n", paths.config.display())
                } else {
                    format!("{} does not exist; the defaults apply\n", paths.config.display())
                };
                for warning in &checked.warnings {
                    text.push_str(&format!("{} {warning}\n", output.bad("warning:")));
                }
                text
            });
        }
        let toml = toml::to_string(&config)?;
        output.print(&config, |_| toml)
    }
}
