//! `state export` and `state import`: for a standby host, or a rebuild.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Serialize;
use sip_xdp::api::answers::{Imported, Refused};
use sip_xdp::api::control::{self, Request};
use sip_xdp::dataplane::counters::SCHEMA;
use sip_xdp::store::state_dump::{Export, Part};
use sip_xdp::sys::paths::Paths;

use super::Output;
use super::import::{progress, read, refused};

/// Export or import what the filter has learnt, for another host
#[derive(Debug, Subcommand)]
pub(crate) enum State {
    /// Print bans, trust, acceptances, offences and history as JSON; works without a daemon
    Export,
    Import(Import),
}

/// Import the output of `state export`
///
/// Adds to the present state; present entries that last longer stay.
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The file; - for the standard input
    file: PathBuf,
}

/// Counts of the rows of one kind.
#[derive(Debug, Default, JsonSchema, Serialize)]
pub(super) struct Count {
    /// Rows added.
    added: usize,
    /// Rows that were known already, or have expired.
    kept: usize,
    /// Rows refused.
    refused: Vec<Refused>,
}

/// Counts by kind of row; kinds without rows are left out.
#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
pub(super) struct Counts(BTreeMap<&'static str, Count>);

impl JsonSchema for Counts {
    fn schema_name() -> Cow<'static, str> {
        "Counts".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let fields = Part::NAMES.map(|name| (name.to_owned(), generator.subschema_for::<Count>()));
        let fields: serde_json::Map<_, _> =
            fields.into_iter().map(|(name, count)| (name, count.to_value())).collect();
        json_schema!({
            "description": "Counts by kind of row.",
            "type": "object",
            "properties": fields,
        })
    }
}

impl State {
    pub(crate) async fn execute(self, paths: &Paths, output: Output) -> Result<()> {
        match self {
            // JSON for people as well: it is meant for a file.
            Self::Export => Output::new(true).print(&Export::collect(paths)?, |_| String::new()),
            Self::Import(import) => import.execute(paths, output).await,
        }
    }
}

impl Import {
    async fn execute(self, paths: &Paths, output: Output) -> Result<()> {
        let name = self.file.display();
        let text = read(&self.file)?;
        let export: Export = serde_json::from_str(&text).with_context(|| {
            format!("{name}: nothing was taken up, it is not what `sip-xdp state export` prints")
        })?;
        if export.schema != SCHEMA {
            bail!(
                "{name}: nothing was taken up, it has schema {}, and this version reads {SCHEMA}",
                export.schema
            );
        }
        let mut counts = Counts::default();
        let parts = export.parts();
        let all = parts.len();
        for (number, part) in (1..).zip(parts) {
            let count = counts.0.entry(part.name()).or_default();
            let answer: Imported =
                control::call(&paths.socket(), &Request::Restore { part }).await?;
            count.added += answer.added;
            count.kept += answer.kept;
            count.refused.extend(answer.refused);
            progress(number, all);
        }
        output.print(&counts, |counts| {
            if counts.0.is_empty() {
                return "there was nothing in it".to_owned();
            }
            let line = |(name, count): (&&str, &Count)| {
                let (added, kept) = (count.added, count.kept);
                format!(
                    "{name:9} {added} taken up, {kept} known or over\n{}",
                    refused(&count.refused)
                )
            };
            counts.0.iter().map(line).collect()
        })
    }
}
