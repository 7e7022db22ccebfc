//! Rows of an answer as a table, or as a chart for the terminal.

use crate::model::{MAX_TIME, Millis};

use super::time::{TimeAxis, show};

/// The smallest and the largest width of a chart, in columns.
const WIDTHS: (usize, usize) = (40, 1000);
/// The smallest and the largest height of a plot, in lines.
const HEIGHTS: (usize, usize) = (5, 200);

/// A point, or a bucket if `end` is given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct PlotRow {
    /// The time of the point, or the start of the bucket.
    pub(super) start: Millis,
    /// The first instant after the bucket.
    pub(super) end: Option<Millis>,
    /// The value.
    pub(super) value: f64,
}

/// Series and how to show them.
pub(super) struct Plot<'a> {
    /// A description of the chart, for the first line.
    pub(super) title: String,
    /// The series, each with its name.
    pub(super) series: &'a [(String, Vec<PlotRow>)],
    /// The queried range; without one the axis ends at the points.
    pub(super) range: Option<(Millis, Millis)>,
    /// Columns of the terminal.
    pub(super) width: usize,
    /// Lines of the plot.
    pub(super) height: usize,
    /// Whether colours distinguish the series.
    pub(super) coloured: bool,
}

/// The colours of series (ECMA-48): those that are legible on light and dark backgrounds.
const COLOURS: [u8; 6] = [36, 33, 35, 32, 34, 31];

/// The most series that are drawn; more could not be distinguished.
const MOST_SERIES: usize = 24;

/// Returns the rows as aligned columns under a heading; each line ends with a line break.
pub(super) fn table(series: &[(String, Vec<PlotRow>)]) -> String {
    let rows = || {
        series
            .iter()
            .flat_map(|(name, rows)| rows.iter().map(move |row| (name, row)))
    };
    if rows().next().is_none() {
        return "no points\n".into();
    }
    let named = series.len() > 1;
    let cells = |(name, row): (&String, &PlotRow)| {
        [
            show(row.start),
            row.end.map(show).unwrap_or_default(),
            rounded(row.value),
            if named {
                plain_text(name)
            } else {
                String::new()
            },
        ]
    };
    let mut heading = match rows().any(|(_, row)| row.end.is_some()) {
        true => ["start (UTC)", "end (UTC)", "value", ""],
        false => ["time (UTC)", "", "value", ""],
    };
    if named {
        heading[3] = "series";
    }
    let mut lines = vec![heading.map(String::from)];
    lines.extend(rows().map(cells));
    let mut widths = [0; 4];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.chars().count().max(*width);
        }
    }
    let [first, second, third, _] = widths;
    let mut out = String::new();
    for [start, end, value, name] in &lines {
        out += &format!("{start:first$}  ");
        if second > 0 {
            out += &format!("{end:second$}  ");
        }
        out += format!("{value:>third$}  {name}").trim_end();
        out.push('\n');
    }
    out
}

/// Returns the rows as comma-separated values (RFC 4180) with exact numbers.
pub(super) fn csv(series: &[(String, Vec<PlotRow>)]) -> String {
    let named = series.len() > 1;
    let ended = series
        .iter()
        .any(|(_, rows)| rows.iter().any(|row| row.end.is_some()));
    let time = |millis| show(millis).replace(' ', "T") + "Z";
    let mut out = String::new();
    out += if named { "series," } else { "" };
    out += if ended {
        "start,end,value\n"
    } else {
        "time,value\n"
    };
    for (name, rows) in series {
        for row in rows {
            if named {
                out += &format!("\"{}\",", name.replace('"', "\"\""));
            }
            out += &time(row.start);
            if let Some(end) = row.end {
                out += &format!(",{}", time(end));
            }
            out += &format!(",{}\n", plain(row.value));
        }
    }
    out
}

/// Returns `text` without characters that control a terminal: it may come from a store.
pub(super) fn plain_text(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

/// Returns the series as a chart; each line ends with a line break. Title, time axis and summary come
/// on top of the plot.
///
/// Neighbouring points are connected, except across a gap of more than a bucket or, without buckets,
/// more than three times the usual distance. Values that are not finite and times out of range are
/// left out.
pub(super) fn chart(plot: &Plot<'_>) -> String {
    let mut out = plain_text(&plot.title);
    if !out.is_empty() {
        out.push('\n');
    }
    let drawable = |(name, rows): &(String, Vec<PlotRow>)| {
        let mut points: Vec<(Millis, f64)> = rows.iter().map(|r| (r.start, r.value)).collect();
        points.retain(|(t, v)| v.is_finite() && (0..MAX_TIME).contains(t));
        points.sort_by_key(|p| p.0);
        let bucket = rows.first().and_then(|row| Some(row.end? - row.start));
        let gap = bucket.map_or_else(|| 3 * usual_distance(&points), |size| size * 3 / 2);
        (plain_text(name), points, gap)
    };
    let drawn: Vec<_> = plot.series.iter().take(MOST_SERIES).map(drawable).collect();
    let points = || drawn.iter().flat_map(|(_, points, _)| points);
    let times = points().map(|p| p.0);
    let (Some(first), Some(last)) = (times.clone().min(), times.max()) else {
        return out + "no points\n";
    };
    let height = plot.height.clamp(HEIGHTS.0, HEIGHTS.1);
    let (low, high) = points().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), p| {
        (low.min(p.1), high.max(p.1))
    });
    let values = ValueAxis::new(low, high, height);
    let margin = values.label_width();
    let columns = plot
        .width
        .clamp(WIDTHS.0, WIDTHS.1)
        .saturating_sub(margin + 2);
    let (start, end) = plot.range.unwrap_or((first, last));
    let times = TimeAxis {
        start: start.min(first),
        end: end.max(last),
        columns: columns.max(10),
    };

    let mut canvas = Canvas::new(times.columns, height);
    for (number, (_, points, gap)) in drawn.iter().enumerate() {
        canvas.colour = number;
        let mut previous: Option<(Millis, Dot)> = None;
        for &(t, v) in points {
            let dot = (times.dot(t), values.dot(v));
            let from = previous.filter(|(before, _)| t - before <= *gap);
            canvas.line(from.map_or(dot, |(_, dot)| dot), dot);
            previous = Some((t, dot));
        }
    }

    for (at, line) in canvas.lines(plot.coloured).enumerate() {
        let (label, edge) = match values.label(at) {
            Some(label) => (label, '┤'),
            None => ("", '│'),
        };
        out += format!("{label:>margin$} {edge}{line}").trim_end();
        out.push('\n');
    }
    let (rule, labels) = times.lines();
    out += &format!("{:margin$} └{rule}\n", "");
    out += format!("{:margin$}  {labels}", "").trim_end();
    out.push('\n');
    let several = plot.series.len() > 1;
    for (number, (name, points, _)) in drawn.iter().enumerate() {
        if several {
            out += &painted("■", number, plot.coloured);
            out += &format!(" {name}\n  ");
        }
        out += &summary(points);
    }
    if let Some(more) = plot
        .series
        .len()
        .checked_sub(MOST_SERIES)
        .filter(|n| *n > 0)
    {
        out += &format!("and {more} more series, which are not drawn\n");
    }
    out
}

/// Returns `text` in the colour of the series with this number.
fn painted(text: &str, number: usize, coloured: bool) -> String {
    match COLOURS.get(number % COLOURS.len()) {
        Some(colour) if coloured => format!("\x1b[{colour}m{text}\x1b[0m"),
        _ => text.to_owned(),
    }
}

/// Returns a line about `points`.
fn summary(points: &[(Millis, f64)]) -> String {
    let Some(last) = points.last() else {
        return "no points\n".to_owned();
    };
    let count = points.len();
    let mean: f64 = points.iter().map(|p| p.1 / count as f64).sum();
    let edge = |pick: fn(f64, f64) -> f64| points.iter().map(|p| p.1).reduce(pick);
    format!(
        "{count} {}, min {}, mean {}, max {}, last {} at {} UTC\n",
        if count == 1 { "point" } else { "points" },
        short(edge(f64::min).unwrap_or(f64::NAN)),
        short(mean),
        short(edge(f64::max).unwrap_or(f64::NAN)),
        short(last.1),
        show(last.0),
    )
}

/// Returns the median distance between successive different times, or 0.
fn usual_distance(points: &[(Millis, f64)]) -> Millis {
    let pairs = points.iter().zip(points.iter().skip(1));
    let mut distances: Vec<Millis> = pairs.map(|(a, b)| b.0 - a.0).filter(|d| *d > 0).collect();
    distances.sort_unstable();
    distances.get(distances.len() / 2).copied().unwrap_or(0)
}

/// Returns the shortest text that parses to the same value, in scientific notation only if it
/// would be mostly zeros.
fn plain(value: f64) -> String {
    if value == 0.0 || !value.is_finite() || (1e-6..1e16).contains(&value.abs()) {
        value.to_string()
    } else {
        format!("{value:e}")
    }
}

/// Returns `value` with at most twelve digits: the thirteenth is usually a rounding error.
fn rounded(value: f64) -> String {
    let digits = format!("{value:.11e}").parse();
    plain(digits.unwrap_or(value))
}

/// Returns the divisor and the suffix for numbers of magnitude `size`, or `None` if no suffix is
/// common.
fn unit(size: f64) -> Option<(f64, &'static str)> {
    // Thousandths get no suffix: `0.2` reads better than `200m`.
    let units = [
        (1e15, 1e15, "P"),
        (1e12, 1e12, "T"),
        (1e9, 1e9, "G"),
        (1e6, 1e6, "M"),
        (1e3, 1e3, "k"),
        (1e-3, 1.0, ""),
        (1e-6, 1e-6, "µ"),
        (1e-9, 1e-9, "n"),
    ];
    let found = units.into_iter().find(|(least, _, _)| size >= *least);
    found
        .filter(|_| size < 1e18)
        .map(|(_, divisor, suffix)| (divisor, suffix))
}

/// Returns the decimal exponent of `value`, within the range of normal numbers.
fn exponent(value: f64) -> i32 {
    // The logarithm of a power of ten may come out a little too small.
    (value.abs().log10() + 1e-9).floor().clamp(-307.0, 308.0) as i32
}

/// Formats `value` with four digits.
fn short(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let Some((divisor, suffix)) = unit(value.abs()) else {
        return format!("{value:.3e}");
    };
    let scaled = value / divisor;
    let decimals = usize::try_from(3 - exponent(scaled)).unwrap_or(0);
    let text = format!("{scaled:.decimals$}");
    let text = match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.'),
        false => &text,
    };
    format!("{text}{suffix}")
}

/// The vertical axis: from one round number to another.
struct ValueAxis {
    bottom: f64,
    top: f64,
    height: usize,
    /// Labels and their lines, counted from the top.
    labels: Vec<(usize, String)>,
}

impl ValueAxis {
    /// Creates an axis of `height` lines that covers `low` and `high`.
    fn new(low: f64, high: f64, height: usize) -> Self {
        // The range, rounded up, must still be finite. Values beyond it are drawn at the edge.
        let reach = f64::MAX / 16.0;
        let (mut low, mut high) = (low.clamp(-reach, reach), high.clamp(-reach, reach));
        let size = low.abs().max(high.abs());
        // Values that differ by less than labels can show are drawn as a constant, in the middle.
        if high - low < (size * 1e-12).max(1e-290) {
            let room = if size < 1e-290 { 1.0 } else { size / 10.0 };
            (low, high) = (low - room, high + room);
        }
        let parts = (height / 2).clamp(2, 8);
        let least = (high - low) / parts as f64;
        let power = 10f64.powi(exponent(least));
        let round = [1.0, 2.0, 5.0].into_iter().map(|n| n * power);
        // A small tolerance, so that ends that lie on a tick do not add another one.
        let step = round
            .into_iter()
            .find(|step| *step >= least * (1.0 - 1e-9))
            .unwrap_or(10.0 * power);
        let first = (low / step + 1e-9).floor();
        let last = (high / step - 1e-9).ceil();
        let mut axis = Self {
            bottom: first * step,
            top: last * step,
            height,
            labels: Vec::new(),
        };
        let size = axis.bottom.abs().max(axis.top.abs());
        let count = (last - first) as usize;
        for n in 0..=count {
            let value = (first + n as f64) * step;
            let line = axis.dot(value) / 4;
            axis.labels.push((line, tick(value, step, size)));
        }
        axis
    }

    /// Returns the distance of `value` below the top, in dots.
    fn dot(&self, value: f64) -> usize {
        let dots = (4 * self.height - 1) as f64;
        let share = (self.top - value) / (self.top - self.bottom);
        (share.clamp(0.0, 1.0) * dots).round() as usize
    }

    fn label(&self, line: usize) -> Option<&str> {
        let found = self.labels.iter().find(|(at, _)| *at == line);
        found.map(|(_, label)| label.as_str())
    }

    fn label_width(&self) -> usize {
        let widths = self.labels.iter().map(|(_, label)| label.chars().count());
        widths.max().unwrap_or(0)
    }
}

/// Returns the label of a tick, with enough decimals to distinguish ticks a `step` apart, on an
/// axis with numbers up to `size`.
fn tick(value: f64, step: f64, size: f64) -> String {
    if value.abs() < step / 2.0 {
        return "0".into();
    }
    let Some((divisor, suffix)) = unit(size) else {
        let digits = usize::try_from(exponent(value) - exponent(step)).unwrap_or(0);
        return format!("{value:.digits$e}");
    };
    let decimals = usize::try_from(-exponent(step / divisor)).unwrap_or(0);
    format!("{:.decimals$}{suffix}", value / divisor)
}

/// A position on a canvas, in dots from the left and from the top.
type Dot = (usize, usize);

/// Dots in braille cells, two wide and four high.
struct Canvas {
    columns: usize,
    /// The dots, and the number of the series that was drawn last.
    cells: Vec<(u8, usize)>,
    /// The number of the series that is being drawn.
    colour: usize,
}

impl Canvas {
    fn new(columns: usize, lines: usize) -> Self {
        Self {
            columns,
            cells: vec![(0, 0); columns * lines],
            colour: 0,
        }
    }

    fn set(&mut self, (x, y): Dot) {
        // Unicode numbers the first three lines of dots by column, and the fourth after them.
        let bit = match (x % 2, y % 4) {
            (0, 3) => 6,
            (_, 3) => 7,
            (column, line) => 3 * column + line,
        };
        if let Some(cell) = self.cells.get_mut(y / 4 * self.columns + x / 2) {
            *cell = (cell.0 | 1 << bit, self.colour);
        }
    }

    /// Draws a straight line, including both ends.
    fn line(&mut self, from: Dot, to: Dot) {
        let steps = from.0.abs_diff(to.0).max(from.1.abs_diff(to.1));
        let between = |a: usize, b: usize, n: usize| {
            let share = n as f64 / steps.max(1) as f64;
            (a as f64 + (b as f64 - a as f64) * share).round() as usize
        };
        for n in 0..=steps {
            self.set((between(from.0, to.0, n), between(from.1, to.1, n)));
        }
    }

    fn lines(&self, coloured: bool) -> impl Iterator<Item = String> {
        let lines = self.cells.chunks(self.columns);
        lines.map(move |cells| {
            let mut line = String::new();
            // Characters of one colour are painted together.
            for part in cells.chunk_by(|a, b| a.1 == b.1 && (a.0 == 0) == (b.0 == 0)) {
                let text: String = part.iter().map(|(bits, _)| braille(*bits)).collect();
                match part.first() {
                    Some((bits, number)) if *bits != 0 => {
                        line += &painted(&text, *number, coloured)
                    }
                    _ => line += &text,
                }
            }
            line
        })
    }
}

/// Returns the character with these dots.
fn braille(bits: u8) -> char {
    // A space leaves no mark where fonts draw the empty braille character as rings.
    match bits {
        0 => ' ',
        bits => char::from_u32(0x2800 + u32::from(bits)).unwrap_or(' '),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::time::{DAY, HOUR, MINUTE};

    const NOON: Millis = 1_795_262_400_000;

    fn one(rows: &[PlotRow]) -> Vec<(String, Vec<PlotRow>)> {
        vec![(String::new(), rows.to_vec())]
    }

    fn table(rows: &[PlotRow]) -> String {
        super::table(&one(rows))
    }

    fn chart(rows: &[PlotRow], title: &str, width: usize, height: usize) -> String {
        super::chart(&Plot {
            title: title.to_owned(),
            series: &one(rows),
            range: None,
            width,
            height,
            coloured: false,
        })
    }

    fn row(minute: Millis, value: f64) -> PlotRow {
        PlotRow {
            start: NOON + minute * MINUTE,
            end: None,
            value,
        }
    }

    fn rows(values: &[f64]) -> Vec<PlotRow> {
        (0..).zip(values).map(|(n, v)| row(n, *v)).collect()
    }

    /// Returns a daily wave, with a gap after its middle.
    fn wave(span: Millis, step: Millis) -> Vec<PlotRow> {
        let gap = span / 2..span * 5 / 8;
        let times = (0..span / step).map(|n| n * step);
        times
            .filter(|t| !gap.contains(t))
            .map(|t| {
                let angle = t as f64 / DAY as f64 * std::f64::consts::TAU;
                PlotRow {
                    start: NOON + t,
                    end: None,
                    value: 1500.0 + 900.0 * angle.sin(),
                }
            })
            .collect()
    }

    /// Returns the lines of a golden text, without the indentation of this file.
    fn golden(text: &str) -> String {
        let lines = text.trim_start_matches('\n').lines();
        let shown = lines.map(|l| l.trim_start().trim_start_matches('|'));
        shown.map(|l| format!("{l}\n")).collect()
    }

    #[test]
    fn a_table_is_aligned() {
        let bucket = |minute, value| PlotRow {
            end: Some(NOON + (minute + 1) * MINUTE),
            ..row(minute, value)
        };
        assert_eq!(
            table(&[bucket(0, 1.5), bucket(1, -1200.0), bucket(2, 1e300)]),
            golden(
                "
            |start (UTC)          end (UTC)            value
            |2026-11-21 12:00:00  2026-11-21 12:01:00    1.5
            |2026-11-21 12:01:00  2026-11-21 12:02:00  -1200
            |2026-11-21 12:02:00  2026-11-21 12:03:00  1e300"
            )
        );
        assert_eq!(
            table(&[row(0, 0.1 + 0.2), row(1, 7.0)]),
            golden(
                "
            |time (UTC)           value
            |2026-11-21 12:00:00    0.3
            |2026-11-21 12:01:00      7"
            )
        );
        assert_eq!(table(&[]), "no points\n");
    }

    #[test]
    fn a_day_is_drawn_with_its_gap() {
        assert_eq!(
            chart(&wave(DAY, 10 * MINUTE), "cpu", 60, 8),
            golden(
                "
            |cpu
            |2.5k ┤         ⣀⡠⠤⠤⠤⠤⠤⠤⣀⡀
            |     │     ⣀⡠⠒⠉         ⠈⠑⠦⣀
            |2.0k ┤  ⢀⡠⠒⠁                ⠑⠦⣀
            |     │⢠⠔⠁                     ⠈⠑⢄
            |1.5k ┤⠁                                                  ⢀⡠⠊
            |1.0k ┤                                                 ⡠⠖⠉
            |     │                                 ⠐⠤⣀         ⢀⡠⠖⠉
            |0.5k ┤                                    ⠉⠑⠒⠒⠒⠒⠒⠒⠉⠁
            |     └┬────────────┬─────────────┬────────────┬─────────────
            |      12:00      18:00         00:00        06:00
            |126 points, min 600, mean 1.545k, max 2.4k, last 1.461k at 2026-11-22 11:50:00 UTC"
            )
        );
    }

    #[test]
    fn a_week_has_dates_and_negative_values_have_signs() {
        let mut week = wave(7 * DAY, HOUR);
        for row in &mut week {
            row.value -= 1500.0;
        }
        assert_eq!(
            chart(&week, "", 60, 6),
            golden(
                "
            | 1k ┤ ⢠⢢      ⡠⢆      ⡰⢄      ⡔⡄             ⢀⠦⡀     ⢠⢢
            |    │⢠⠃ ⢱    ⢠⠃ ⡇    ⢸ ⠈⡆    ⡜ ⠈⡆      ⢸     ⡇ ⢱    ⢠⠃ ⢱
            |    │⡸  ⠸⡀   ⡇  ⢸   ⢀⠇  ⢸   ⢀⠇  ⠃       ⡇   ⡸   ⡇   ⡸  ⠸⡀
            |  0 ┤⠁   ⡇  ⢠⠃  ⠈⡆  ⢸   ⠈⡆  ⡜           ⢱   ⡇   ⢱  ⢠⠃   ⡇  ⢠
            |    │    ⠘⡄ ⡇    ⢸ ⢀⠇    ⢣ ⢀⠇            ⡇ ⡸    ⠘⡄ ⡸    ⠘⡄ ⡇
            |-1k ┤     ⠑⠎      ⠱⠊      ⠣⠃             ⠈⠖⠁     ⠘⠜      ⠑⠎
            |    └───────────┬───────────────┬───────────────┬───────────
            |              11-23           11-25           11-27
            |147 points, min -900, mean 8.975, max 900, last -232.9 at 2026-11-28 11:00:00 UTC"
            )
        );
    }

    #[test]
    fn one_point_and_constants_are_in_the_middle_of_the_smallest_chart() {
        assert_eq!(
            chart(&rows(&[42.0]), "one", 0, 0),
            golden(
                "
            |one
            |50 ┤
            |45 ┤
            |   │                 ⠠
            |40 ┤
            |35 ┤
            |   └─────────────────┬──────────────────
            |                 12:00:00
            |1 point, min 42, mean 42, max 42, last 42 at 2026-11-21 12:00:00 UTC"
            )
        );
        assert_eq!(
            chart(&rows(&[0.0; 5]), "flat", 40, 5),
            golden(
                "
            |flat
            | 1 ┤
            |   │
            | 0 ┤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤
            |   │
            |-1 ┤
            |   └┬────────┬────────┬───────┬────────┬
            |    12:00  12:01    12:02   12:03  12:04
            |5 points, min 0, mean 0, max 0, last 0 at 2026-11-21 12:04:00 UTC"
            )
        );
    }

    #[test]
    fn the_axis_is_the_range_that_was_asked_for() {
        let plot = |rows: &[PlotRow]| {
            super::chart(&Plot {
                title: String::new(),
                series: &one(rows),
                range: Some((NOON, NOON + 6 * HOUR)),
                width: 60,
                height: 5,
                coloured: false,
            })
        };
        // It died after two of six hours.
        let dead = plot(&wave(2 * HOUR, 5 * MINUTE));
        let lines: Vec<&str> = dead.lines().collect();
        let reach = lines[..5]
            .iter()
            .map(|line| line.chars().count())
            .max()
            .unwrap();
        assert!((20..30).contains(&reach), "{dead}");
        assert!(dead.contains("17:00") || dead.contains("18:00"), "{dead}");
        let point = plot(&rows(&[42.0]));
        assert!(
            point
                .lines()
                .take(5)
                .any(|l| l.ends_with(['⠁', '⠂', '⠄', '⡀'])),
            "{point}"
        );
    }

    #[test]
    fn buckets_are_not_connected_across_a_gap() {
        let bucket = |n: i64| PlotRow {
            start: NOON + n * MINUTE,
            end: Some(NOON + (n + 1) * MINUTE),
            value: 1.0,
        };
        let dots = |rows: &[PlotRow]| {
            let text = chart(rows, "", 80, 5);
            text.chars()
                .filter(|c| ('\u{2801}'..='\u{28ff}').contains(c))
                .count()
        };
        let whole: Vec<PlotRow> = (0..20).map(bucket).collect();
        let holed: Vec<PlotRow> = (0..20)
            .filter(|n| !(5..15).contains(n))
            .map(bucket)
            .collect();
        assert!(dots(&holed) < dots(&whole) * 2 / 3);
    }

    #[test]
    fn series_have_colours_and_a_line_each() {
        let series = vec![
            ("a\u{1b}[2J".to_owned(), rows(&[1.0, 2.0])),
            ("b".to_owned(), rows(&[5.0, 4.0])),
        ];
        let plot = |coloured| {
            super::chart(&Plot {
                title: "t".to_owned(),
                series: &series,
                range: None,
                width: 60,
                height: 8,
                coloured,
            })
        };
        let plain = plot(false);
        assert!(!plain.contains('\u{1b}'), "{plain:?}");
        assert!(
            plain.contains("■ a[2J\n") && plain.contains("■ b\n"),
            "{plain}"
        );
        let coloured = plot(true);
        assert!(coloured.contains("\u{1b}[36m") && coloured.contains("\u{1b}[33m"));
        let uncoloured = coloured.replace("\u{1b}[36m", "").replace("\u{1b}[33m", "");
        assert_eq!(uncoloured.replace("\u{1b}[0m", ""), plain);
        let listed = super::table(&series);
        assert!(
            listed.lines().nth(1).unwrap().ends_with("1  a[2J"),
            "{listed}"
        );
    }

    #[test]
    fn comma_separated_values_are_exact() {
        let series = vec![
            ("say \"a\"".to_owned(), rows(&[0.1 + 0.2])),
            ("b".to_owned(), vec![]),
        ];
        assert_eq!(
            csv(&series),
            "series,time,value\n\"say \"\"a\"\"\",2026-11-21T12:00:00Z,0.30000000000000004\n"
        );
        let bucket = PlotRow {
            end: Some(NOON + MINUTE),
            ..row(0, 7.0)
        };
        assert_eq!(
            csv(&one(&[bucket])),
            "start,end,value\n2026-11-21T12:00:00Z,2026-11-21T12:01:00Z,7\n"
        );
    }

    #[test]
    fn without_points_the_chart_says_so() {
        assert_eq!(chart(&[], "cpu", 80, 10), "cpu\nno points\n");
        let unusable = [
            row(0, f64::NAN),
            PlotRow {
                start: -1,
                ..row(0, 1.0)
            },
        ];
        assert_eq!(
            chart(&unusable, "c\u{1b}[2Jpu\n", 80, 10),
            "c[2Jpu\nno points\n"
        );
    }

    #[test]
    fn ticks_are_round_and_tell_values_apart() {
        let labels = |low, high| -> Vec<String> {
            let axis = ValueAxis::new(low, high, 8);
            axis.labels.into_iter().map(|(_, label)| label).collect()
        };
        assert_eq!(labels(0.1, 0.3), ["0.10", "0.15", "0.20", "0.25", "0.30"]);
        assert_eq!(labels(-900.0, 3100.0), ["-1k", "0", "1k", "2k", "3k", "4k"]);
        assert_eq!(labels(1e9, 1e9 + 2.0).last().unwrap(), "1.0000000020G");
        assert_eq!(labels(1e-5, 3e-5).last().unwrap(), "30µ");
        assert_eq!(labels(0.0, 3e20), ["0", "1e20", "2e20", "3e20"]);
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (-0.25, "-0.25"),
            (100.0, "100"),
            (1234.56, "1.235k"),
            (3_400_000.0, "3.4M"),
            (0.000_05, "50µ"),
            (0.012_345, "0.01235"),
            (1e20, "1.000e20"),
            (5e-324, "4.941e-324"),
        ] {
            assert_eq!(short(value), text);
        }
    }

    #[test]
    fn every_size_range_and_span_makes_a_chart_of_its_size() {
        let values = [
            f64::MAX,
            f64::MIN,
            0.0,
            5e-324,
            -1e-300,
            1e9,
            1e9 + 1e-7,
            0.1,
            -3.0,
        ];
        let times = [0, 1, 999, NOON, NOON + 1, NOON + 40 * DAY, MAX_TIME - 1];
        for (low, high) in values.iter().flat_map(|a| values.map(|b| (*a, b))) {
            for (from, to) in times.iter().flat_map(|a| times.map(|b| (*a, b))) {
                let point = |start, value| PlotRow {
                    start,
                    end: None,
                    value,
                };
                let text = chart(&[point(from, low), point(to, high)], "t", 72, 7);
                let lines: Vec<&str> = text.lines().collect();
                assert_eq!(lines.len(), 1 + 7 + 2 + 1, "{text}");
                let plot = &lines[1..10];
                assert!(plot.iter().all(|l| l.chars().count() <= 72), "{text}");
                let ticks: Vec<&&str> = plot.iter().filter(|l| l.contains('┤')).collect();
                assert!((3..=7).contains(&ticks.len()), "{text}");
                assert!(
                    plot.iter().any(|l| l.chars().any(|c| c > '\u{2800}')),
                    "{text}"
                );
            }
        }
    }
}
