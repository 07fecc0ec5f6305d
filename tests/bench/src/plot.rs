//! One picture per section: a bar per row's median, the spread over the rounds, and the budget.
//! Each unit has its own panel. The background is opaque, so that the page's colour does not
//! matter.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::report::{Budget, Row, Section, Summary};
use crate::table::number;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const BACKGROUND: RGBColor = RGBColor(252, 252, 252);
const INK: RGBColor = RGBColor(31, 35, 40);
const PALE_INK: RGBColor = RGBColor(87, 96, 106);
const GRID: RGBColor = RGBColor(216, 222, 228);
const OURS: RGBColor = RGBColor(33, 136, 104);
const THEIRS: RGBColor = RGBColor(140, 160, 186);
const BUDGET: RGBColor = RGBColor(207, 34, 46);

/// All in pixels.
const BARS: i32 = 430;
const MARGIN: i32 = 20;
const ROW: i32 = 40;
const BAR: i32 = 18;
const TITLE: i32 = 44;
const PANEL_HEAD: i32 = 26;
const PANEL_FOOT: i32 = 34;
/// Room for the value behind the longest bar.
const VALUE: i32 = 150;

/// Draws a section into a file. A section without any sample has no picture.
pub(crate) fn draw(section: &Section, file: &Path) -> Result<()> {
    let panels = panels(section);
    if panels.is_empty() {
        return Ok(());
    }
    // Names wider than this are rare; sans-serif letters are a little narrower than they are
    // counted here.
    let longest = section
        .rows
        .iter()
        .map(|row| text_width(&row.name, 14).max(text_width(&row.populated, 11)))
        .max();
    let left = MARGIN + longest.unwrap_or(0).clamp(160, 460) + 12;
    let width = (left + BARS + VALUE + MARGIN).max(2 * MARGIN + text_width(section.title, 17));
    let heights: i32 = panels.iter().map(Panel::height).sum();
    let size = (width.unsigned_abs(), (TITLE + heights + MARGIN / 2).unsigned_abs());

    let area = SVGBackend::new(file, size).into_drawing_area();
    let picture = Picture { area, left };
    picture.section(section, &panels).with_context(|| format!("cannot draw {}", file.display()))
}

/// The rows of one unit.
struct Panel<'a> {
    unit: &'static str,
    rows: Vec<(&'a Row, Summary)>,
}

impl Panel<'_> {
    fn height(&self) -> i32 {
        PANEL_HEAD + ROW * i32::try_from(self.rows.len()).unwrap_or(0) + PANEL_FOOT
    }
}

fn panels(section: &Section) -> Vec<Panel<'_>> {
    let mut panels: Vec<Panel<'_>> = Vec::new();
    for row in &section.rows {
        let Some(summary) = row.summary() else { continue };
        match panels.iter_mut().find(|panel| panel.unit == row.unit) {
            Some(panel) => panel.rows.push((row, summary)),
            None => panels.push(Panel { unit: row.unit, rows: vec![(row, summary)] }),
        }
    }
    panels
}

struct Picture<'a> {
    area: Area<'a>,
    /// Where bars begin.
    left: i32,
}

impl Picture<'_> {
    fn section(&self, section: &Section, panels: &[Panel<'_>]) -> Result<()> {
        self.area.fill(&BACKGROUND).map_err(drawing)?;
        self.text(section.title, (MARGIN, MARGIN), 17, INK, (HPos::Left, VPos::Top))?;
        let mut top = TITLE;
        for panel in panels {
            self.panel(section, panel, top)?;
            top += panel.height();
        }
        self.area.present().map_err(drawing)
    }

    fn panel(&self, section: &Section, panel: &Panel<'_>, top: i32) -> Result<()> {
        let marks: Vec<_> = panel.rows.iter().map(|(row, _)| budget_mark(section, row)).collect();
        let maxima = panel.rows.iter().map(|(_, summary)| summary.max);
        let largest = maxima.chain(marks.iter().flatten().copied()).fold(0.0, f64::max);
        let step = step(largest);
        let ticks = (largest / step).ceil().max(1.0);
        let x = |value: f64| self.left + (value / (ticks * step) * f64::from(BARS)).round() as i32;

        let (first, last) = (top + PANEL_HEAD, top + panel.height() - PANEL_FOOT);
        for tick in 0..=ticks as i32 {
            let value = f64::from(tick) * step;
            self.line((x(value), first), (x(value), last), GRID, 1)?;
            self.text(
                &tick_label(value, step),
                (x(value), last + 6),
                11,
                PALE_INK,
                (HPos::Center, VPos::Top),
            )?;
        }
        let has_budget = marks.iter().any(Option::is_some);
        let unit =
            if has_budget { format!("{}, red: budget", panel.unit) } else { panel.unit.to_owned() };
        self.text(&unit, (self.left, top + 4), 12, PALE_INK, (HPos::Left, VPos::Top))?;

        for (index, ((row, summary), mark)) in panel.rows.iter().zip(&marks).enumerate() {
            let middle = first + ROW * i32::try_from(index)? + ROW / 2;
            self.label(row, middle)?;
            let colour = if row.name.starts_with("sip-xdp") { OURS } else { THEIRS };
            self.rectangle(
                (self.left, middle - BAR / 2),
                (x(summary.median), middle + BAR / 2),
                colour,
            )?;
            self.line((x(summary.min), middle), (x(summary.max), middle), INK, 1)?;
            for end in [summary.min, summary.max] {
                self.line((x(end), middle - 4), (x(end), middle + 4), INK, 1)?;
            }
            let mut behind = x(summary.max);
            if let Some(mark) = mark {
                self.line(
                    (x(*mark), middle - BAR / 2 - 4),
                    (x(*mark), middle + BAR / 2 + 4),
                    BUDGET,
                    2,
                )?;
                behind = behind.max(x(*mark));
            }
            let ratio = section.ratio(row).filter(|_| row.baseline.as_ref() != Some(&row.name));
            let ratio = ratio.map_or_else(String::new, |ratio| format!("  (ratio {ratio:.2})"));
            let value = format!("{}{ratio}", number(summary.median));
            // The grid stays visible around the number, not through it.
            let end = behind + 8 + text_width(&value, 13);
            self.rectangle((behind + 6, middle - 8), (end, middle + 8), BACKGROUND)?;
            self.text(&value, (behind + 8, middle), 13, INK, (HPos::Left, VPos::Center))?;
        }
        Ok(())
    }

    fn label(&self, row: &Row, middle: i32) -> Result<()> {
        let right = self.left - 12;
        if row.populated.is_empty() {
            return self.text(&row.name, (right, middle), 14, INK, (HPos::Right, VPos::Center));
        }
        self.text(&row.name, (right, middle - 8), 14, INK, (HPos::Right, VPos::Center))?;
        self.text(&row.populated, (right, middle + 9), 11, PALE_INK, (HPos::Right, VPos::Center))
    }

    fn text(
        &self,
        text: &str,
        at: (i32, i32),
        size: i32,
        colour: RGBColor,
        (h, v): (HPos, VPos),
    ) -> Result<()> {
        let style =
            TextStyle::from(("sans-serif", size).into_font()).color(&colour).pos(Pos::new(h, v));
        self.area.draw(&Text::new(text.to_owned(), at, style)).map_err(drawing)
    }

    fn line(&self, from: (i32, i32), to: (i32, i32), colour: RGBColor, width: u32) -> Result<()> {
        self.area.draw(&PathElement::new([from, to], colour.stroke_width(width))).map_err(drawing)
    }

    fn rectangle(&self, from: (i32, i32), to: (i32, i32), colour: RGBColor) -> Result<()> {
        self.area.draw(&Rectangle::new([from, to], colour.filled())).map_err(drawing)
    }
}

/// Where a row's budget lies on the axis; for those that depend on a baseline, by its median.
fn budget_mark(section: &Section, row: &Row) -> Option<f64> {
    let baseline = || {
        let name = row.baseline.as_ref()?;
        Some(section.rows.iter().find(|candidate| candidate.name == *name)?.summary()?.median)
    };
    Some(match row.budget? {
        Budget::RatioAtLeast(limit) | Budget::RatioAtMost(limit) => limit * baseline()?,
        Budget::AtMost(limit) | Budget::AtLeast(limit) => limit,
        Budget::OverBaselineAtMost(limit) => limit + baseline()?,
    })
}

/// The distance between ticks: 1, 2 or 5 times a power of ten, so that there are four to eight.
fn step(largest: f64) -> f64 {
    if largest <= 0.0 {
        return 1.0;
    }
    let rough = largest / 5.0;
    let power = 10_f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .map(|factor| factor * power)
        .into_iter()
        .find(|step| *step >= rough)
        .unwrap_or(power)
}

fn tick_label(value: f64, step: f64) -> String {
    let decimals = (-step.log10().floor()).max(0.0) as usize;
    if decimals == 0 {
        crate::table::thousands(value.round() as i64)
    } else {
        format!("{value:.decimals$}")
    }
}

/// About how wide a text is: the font is the viewer's.
fn text_width(text: &str, size: i32) -> i32 {
    i32::try_from(text.chars().count()).unwrap_or(0) * size * 46 / 100
}

fn drawing(error: DrawingAreaErrorKind<impl std::error::Error + Send + Sync>) -> anyhow::Error {
    anyhow!("{error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        for largest in [0.003, 0.9, 1.0, 5.2, 6.3, 49.0, 1466.0, 1e9] {
            let ticks = (largest / step(largest)).ceil();
            assert!((2.0..=8.0).contains(&ticks), "{largest}: {ticks}");
        }
        assert_eq!(step(6.3), 2.0);
        assert_eq!(tick_label(0.5, 0.25), "0.5");
        assert_eq!(tick_label(2000.0, 500.0), "2,000");
    }

    /// `SIP_XDP_PLOT` names a file to look at.
    #[test]
    fn draws_every_row() {
        let row = |name: &str, unit, samples: &[f64], budget| Row {
            name: name.to_owned(),
            populated:
                "1,024 listed sources, 1,000,000 feed entries, 100 trusted networks, 1,000 bans"
                    .to_owned(),
            unit,
            samples: samples.to_vec(),
            baseline: Some("drop everything".to_owned()),
            budget,
            note: String::new(),
        };
        let section = Section {
            letter: 'x',
            title: "Drop rate, 1,024 listed sources",
            rows: vec![
                row("drop everything", "Mpps", &[6.1, 6.3, 6.4], None),
                row("sip-xdp", "Mpps", &[5.5, 5.8, 6.0], Some(Budget::RatioAtLeast(0.95))),
                row("nftables, netdev ingress set", "Mpps", &[1.6, 1.7, 1.8], None),
                row("fail2ban-style chain of 1,024 rules <&>", "Mpps", &[0.01, 0.04, 0.05], None),
                row("memory", "MiB", &[12.0, 12.5, 40.0], Some(Budget::AtMost(60.0))),
                row("nothing measured", "s", &[], None),
            ],
            remarks: Vec::new(),
        };
        let directory = tempfile::tempdir().unwrap();
        let file = std::env::var_os("SIP_XDP_PLOT")
            .map_or_else(|| directory.path().join("x.svg"), Into::into);
        draw(&section, &file).unwrap();
        let svg = std::fs::read_to_string(file).unwrap();
        for row in &section.rows[1..3] {
            assert!(svg.contains(&row.name), "{}", row.name);
        }
        assert!(svg.contains("&lt;&amp;&gt;"));
    }
}
