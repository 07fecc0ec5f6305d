//! Runs all rows on one kernel: boots a machine with the cards of the remaining rows, as often as
//! necessary.

use std::path::Path;

use anyhow::{Context as _, Result};

use super::arrange::Arranged;
use super::checks::{self, Outcome};
use super::interfaces::{self, Card, Row};
use super::kernels::{Kernel, Prepared};
use super::outside::Outside;
use super::qemu::{self, Accelerator, Boot, Dead, Machine};
use super::report::{self, Tried};
use super::setup::Files;
use super::{Options, archive, circumstances, kept};
use crate::command::say;

/// Maximum number of boots of a machine that hangs.
const BOOTS: u32 = 3;

/// Common state of a run over all kernels.
pub(super) struct Run<'a> {
    pub(super) options: &'a Options,
    pub(super) files: &'a Files,
    /// Directory of the results.
    pub(super) kept: &'a Path,
    /// The binary's hash.
    pub(super) binary: &'a str,
    pub(super) accelerator: &'a mut Accelerator,
}

impl Run<'_> {
    /// Runs all rows on one kernel, in one machine for as long as it works.
    pub(super) fn try_kernel(
        &mut self,
        kernel: &'static Kernel,
        prepared: &Prepared,
        rows: &[Row],
    ) -> Result<Tried> {
        let Self { options, files, .. } = *self;
        let architecture = options.arch;
        let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
        let initrd = directory.path().join("initrd");
        let overlay = directory.path().join("overlay");
        files.overlay(architecture, &overlay)?;
        archive::join(&[&files.root, &prepared.modules, &overlay], &initrd)?;
        let mut tried = Tried {
            kernel,
            architecture,
            release: prepared.release.clone(),
            boot: 0.0,
            rows: Vec::new(),
            warnings: Vec::new(),
        };
        let mut places = Vec::new();
        for (row, cards) in interfaces::deal(rows) {
            let outside = Outside::open(&cards, &row, directory.path())?;
            places.push(Place { row, cards, outside });
        }
        let mut boots = 0;
        while tried.rows.len() < places.len() {
            let left = &places[tried.rows.len()..];
            let cards: Vec<Card> =
                left.iter().flat_map(|place| place.cards.iter().cloned()).collect();
            boots += 1;
            let boot = Boot {
                architecture,
                accelerator: *self.accelerator,
                image: &prepared.image,
                initrd: &initrd,
                cards: &cards,
                directory: directory.path(),
            };
            let machine = Machine::boot(&boot);
            let mut machine = match machine {
                Ok(machine) => machine,
                Err(error) if *self.accelerator == Accelerator::Kvm => {
                    say(format!(
                        "KVM boots nothing here, so that machines are emulated: {error:#}"
                    ));
                    *self.accelerator = Accelerator::Emulation;
                    qemu::remember_no_kvm(&files.cache)?;
                    boots -= 1;
                    continue;
                }
                Err(error) if boots < BOOTS => {
                    say(format!("boot {boots} hangs, once more: {error:#}"));
                    continue;
                }
                Err(error) => {
                    return Err(error.context(format!("kernel {} does not boot", prepared.release)));
                }
            };
            tried.boot = machine.seconds;
            say(format!("booted in {:.0} s by {}", machine.seconds, self.accelerator));
            for place in left {
                let row = &place.row;
                match try_row(&mut machine, place, options) {
                    Err(error) if error.is::<Dead>() && boots < BOOTS => {
                        say(format!("{}: {error:#}; once more on a new machine", row.name));
                        break;
                    }
                    result => {
                        let result = result.map_err(|error| format!("{error:#}"));
                        say(format!("  {}: {}", row.name, report::in_a_word(&result)));
                        let one = Tried { rows: vec![(row.name, result.clone())], ..tried.bare() };
                        tried.rows.push((row.name, result));
                        let circumstances = circumstances(options, self.binary, *self.accelerator)?;
                        kept::keep(self.kept, &report::json(&[one], &circumstances))?;
                    }
                }
            }
            tried.warnings.extend(machine.kernel_warnings());
        }
        Ok(tried)
    }
}

/// A row, its cards, and their other ends.
struct Place {
    row: Row,
    cards: Vec<Card>,
    outside: Outside,
}

fn try_row(machine: &mut Machine, place: &Place, options: &Options) -> Result<Outcome> {
    let Place { row, cards, outside } = place;
    let arranged = Arranged::build(machine, row, cards, outside)?;
    checks::run(machine, row, arranged, outside, &options.scope())
}
