//! Collects speeds over rounds, and prints them as a table or as JSON.

use crate::engine::{Kind, Weights};
use crate::limits::{Int8, Limits};
use serde_json::{Value, json};
use std::fmt::Write;

/// Median and range of some numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Range {
    /// `None` of no numbers.
    pub fn of(mut values: Vec<f64>) -> Option<Range> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Some(Range { median, min, max })
    }

    fn json(self) -> Value {
        json!({"median": self.median, "min": self.min, "max": self.max})
    }
}

/// One round of a test: its speed, and what bounded it meanwhile.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    pub speed: f64,
    pub limits: Limits,
}

/// The runs of one engine in one test of one model, a round each.
#[derive(Debug)]
struct Series {
    model: String,
    test: String,
    engine: String,
    kind: Kind,
    runs: Vec<Run>,
}

/// How much of what bounds it a program uses.
#[derive(Debug, Clone, Copy)]
struct Use {
    /// Bytes or operations a second, in billions.
    rate: f64,
    unit: &'static str,
    /// In the same rounds.
    share: Range,
}

impl Series {
    fn speed(&self) -> Option<Range> {
        Range::of(self.runs.iter().map(|run| run.speed).collect())
    }

    /// Generation is bounded by reading the weights, a prompt by multiplying them.
    fn used(&self, weights: Option<Weights>) -> Option<Use> {
        let weights = weights?;
        let prompt = self.test.starts_with("pp");
        let (work, unit) =
            if prompt { (2.0 * weights.layer_parameters, "GOP/s") } else { (weights.bytes_per_token, "GB/s") };
        let limit = |limits: Limits| {
            if prompt { limits.int8.map(|int8| int8.all_threads) } else { Some(limits.bandwidth) }
        };
        let shares: Option<Vec<f64>> =
            self.runs.iter().map(|run| Some(run.speed * work / limit(run.limits)?)).collect();
        Some(Use { rate: self.speed()?.median * work / 1e9, unit, share: Range::of(shares?)? })
    }
}

/// All speeds. Engines keep the order in which they first appear; the first one is compared with the others.
#[derive(Debug, Default)]
pub struct Report {
    /// What machine it is, in a line.
    machine: String,
    threads: u32,
    /// Everything that was measured of the machine.
    pub limits: Vec<Limits>,
    series: Vec<Series>,
    versions: Vec<String>,
    weights: Vec<(String, Weights)>,
    /// Model, engine, and why there are no speeds.
    failures: Vec<(String, String, String)>,
}

/// A series with what the table says of it.
struct Row<'a> {
    series: &'a Series,
    speed: Range,
    used: Option<Use>,
    /// The first engine's speed divided by this one's, but for the first.
    ratio: Option<Range>,
    /// Whether nothing else of llama.cpp's is faster, by that ratio.
    best: bool,
}

impl Report {
    /// Of a machine, with as many threads.
    pub fn new(machine: String, threads: u32) -> Self {
        Report { machine, threads, ..Report::default() }
    }

    /// Adds one round.
    pub fn add(&mut self, model: &str, test: &str, engine: (&str, Kind), run: Run) {
        let (engine, kind) = engine;
        let same = |s: &&mut Series| s.model == model && s.test == test && s.engine == engine;
        match self.series.iter_mut().find(same) {
            Some(series) => series.runs.push(run),
            None => {
                let (model, test, engine) = (model.into(), test.into(), engine.into());
                self.series.push(Series { model, test, engine, kind, runs: vec![run] });
            }
        }
    }

    /// Adds the version of a program.
    pub fn add_version(&mut self, version: String) {
        if !self.versions.contains(&version) {
            self.versions.push(version);
        }
    }

    /// Adds what a model computes with.
    pub fn add_weights(&mut self, model: &str, weights: Weights) {
        if !self.weights.iter().any(|(name, _)| name == model) {
            self.weights.push((model.into(), weights));
        }
    }

    /// Adds that an engine cannot run a model.
    pub fn add_failure(&mut self, model: &str, engine: &str, reason: &str) {
        self.failures.push((model.into(), engine.into(), reason.into()));
    }

    /// Whether the engine failed with this model.
    pub fn failed(&self, model: &str, engine: &str) -> bool {
        self.failures.iter().any(|(m, e, _)| m == model && e == engine)
    }

    /// Ratios are taken round by round, since what slows one program of a round tends to slow its neighbours too.
    fn rows(&self) -> Vec<Row<'_>> {
        let mut groups: Vec<(&str, &str)> = Vec::new();
        for s in &self.series {
            if !groups.contains(&(&s.model, &s.test)) {
                groups.push((&s.model, &s.test));
            }
        }
        groups.into_iter().flat_map(|(model, test)| self.group(model, test)).collect()
    }

    fn group<'a>(&'a self, model: &str, test: &str) -> Vec<Row<'a>> {
        let group: Vec<&'a Series> = self.series.iter().filter(|s| s.model == model && s.test == test).collect();
        let weights = self.weights.iter().find(|(name, _)| name == model).map(|(_, weights)| *weights);
        let row = |(i, series): (usize, &'a Series)| {
            let both = group[0].runs.iter().zip(&series.runs);
            let ratio = Range::of(both.map(|(ours, theirs)| ours.speed / theirs.speed).collect());
            let (used, ratio) = (series.used(weights), ratio.filter(|_| i > 0));
            Some(Row { series, speed: series.speed()?, used, ratio, best: false })
        };
        let mut rows: Vec<Row> = group.iter().copied().enumerate().filter_map(row).collect();
        let of_llama = rows.iter_mut().filter(|row| row.series.kind == Kind::LlamaCpp);
        // Without wavelm it is the speed that counts.
        let key = |row: &Row| row.ratio.map_or(-row.speed.median, |ratio| ratio.median);
        if let Some(best) = of_llama.min_by(|a, b| key(a).total_cmp(&key(b))) {
            best.best = true;
        }
        rows
    }

    /// A table for people, after what the machine can do.
    pub fn markdown(&self) -> String {
        let ours = self.series.first().map_or("first", |s| &s.engine);
        let mut out = format!("{}.\n{}", self.machine, self.limits_text());
        out += &format!("Programs: {}.\n\n", self.versions.join(", "));
        out += &format!("| model | test | program | tokens/s | range | rate | of the limit | {ours} ÷ it | range |\n");
        out += "|---|---|---|--:|--:|--:|--:|--:|--:|\n";
        for Row { series, speed, used, ratio, best } in self.rows() {
            let bold = if best { "**" } else { "" };
            let Series { model, test, engine, .. } = series;
            let used =
                used.map_or("|".into(), |u| format!("{:.1} {} | {:.0}%", u.rate, u.unit, 100.0 * u.share.median));
            let ratio =
                ratio.map_or("|".into(), |r| format!("{bold}{:.2}{bold} | {:.2} to {:.2}", r.median, r.min, r.max));
            let Range { median, min, max } = speed;
            // Writing to a string cannot fail.
            let _ = writeln!(
                out,
                "| {model} | {test} | {bold}{engine}{bold} | {median:.1} | {min:.1} to {max:.1} | {used} | {ratio} |"
            );
        }
        for (model, engine, reason) in &self.failures {
            let _ = writeln!(out, "| {model} | | {engine} | {} | | | | | |", reason.replace(['|', '\n'], " "));
        }
        out + "\nBold: the best of llama.cpp's rows. Generation: the weights read, of how fast memory is read. Prompts: the \
               multiplications and additions of the layers' matrices, of the 8-bit ones that the processor can do.\n"
    }

    /// Ranges of one of the limits.
    fn limit(&self, of: impl Fn(&Limits) -> Option<f64>) -> Option<Range> {
        Range::of(self.limits.iter().filter_map(of).map(|limit| limit / 1e9).collect())
    }

    fn int8(&self) -> Option<(&'static str, Range, Range)> {
        let of = |part: fn(Int8) -> f64| self.limit(|limits| limits.int8.map(part));
        let instructions = self.limits.first()?.int8?.instructions;
        Some((instructions, of(|int8| int8.one_thread)?, of(|int8| int8.all_threads)?))
    }

    fn limits_text(&self) -> String {
        let threads = if self.threads == 1 { "1 thread".into() } else { format!("{} threads", self.threads) };
        let mut text = String::new();
        if let Some(Range { median, min, max }) = self.limit(|limits| Some(limits.bandwidth)) {
            let _ =
                writeln!(text, "Memory, read by {threads} between rounds: {median:.1} GB/s ({min:.1} to {max:.1}).");
        }
        if let Some((instructions, one, all)) = self.int8() {
            let _ = writeln!(
                text,
                "8-bit multiplications and additions ({instructions}): {:.0} GOP/s ({:.0} to {:.0}) by 1 thread, \
                 {:.0} GOP/s ({:.0} to {:.0}) by {threads}.",
                one.median, one.min, one.max, all.median, all.min, all.max
            );
        }
        text
    }

    /// The same for programs: one object per line, the first for the machine.
    pub fn json_lines(&self) -> String {
        let range = |range: Option<Range>| range.map_or(Value::Null, Range::json);
        let int8 = self.int8().map_or(Value::Null, |(instructions, one, all)| {
            json!({"instructions": instructions, "one_thread": one.json(), "all_threads": all.json()})
        });
        let bandwidth = range(self.limit(|limits| Some(limits.bandwidth)));
        let machine = json!({"machine": self.machine, "threads": self.threads, "versions": self.versions,
                             "gb_per_second": bandwidth, "int8_gop_per_second": int8});
        let mut lines = vec![machine];
        for Row { series, speed, used, ratio, best } in self.rows() {
            let Series { model, test, engine, runs, .. } = series;
            let used = used.map_or(Value::Null, |u| json!({"rate": u.rate, "unit": u.unit, "share": u.share.json()}));
            lines.push(json!({"model": model, "test": test, "program": engine, "rounds": runs.len(), "used": used,
                              "tokens_per_second": speed.json(), "ratio": range(ratio), "best_of_llama_cpp": best}));
        }
        let failure = |(model, engine, reason): &_| json!({"model": model, "program": engine, "error": reason});
        lines.extend(self.failures.iter().map(failure));
        lines.iter().map(|line| format!("{line}\n")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAVELM: (&str, Kind) = ("wavelm", Kind::Wavelm);
    const LLAMA: (&str, Kind) = ("llama.cpp", Kind::LlamaCpp);
    const OTHER: (&str, Kind) = ("other", Kind::Candle);

    /// Memory is read at 100 GB/s, and 1,000 GOP/s are done.
    fn run(speed: f64) -> Run {
        let int8 = Int8 { instructions: "x", one_thread: 5e11, all_threads: 1e12 };
        Run { speed, limits: Limits { bandwidth: 1e11, int8: Some(int8) } }
    }

    fn parsed(report: &Report) -> Vec<Value> {
        report.json_lines().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn median_and_range() {
        assert_eq!(Range::of(vec![3.0, 1.0, 2.0]), Some(Range { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Range::of(vec![4.0, 1.0]), Some(Range { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(Range::of(vec![]), None);
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let mut report = Report::default();
        for (ours, theirs) in [(10.0, 5.0), (30.0, 10.0), (8.0, 4.0)] {
            report.add("m.gguf", "pp512", WAVELM, run(ours));
            report.add("m.gguf", "pp512", OTHER, run(theirs));
        }
        let rows = parsed(&report);
        assert_eq!(rows.len(), 3);
        assert_eq!((&rows[1]["ratio"], &rows[1]["used"]), (&Value::Null, &Value::Null));
        assert_eq!(rows[2]["ratio"], json!({"median": 2.0, "min": 2.0, "max": 3.0}));
        assert_eq!(rows[2]["tokens_per_second"]["median"], 5.0);
        assert_eq!(rows[2]["rounds"], 3);
        let table = report.markdown();
        assert!(table.contains("| m.gguf | pp512 | other | 5.0 | 4.0 to 10.0 | | | 2.00 | 2.00 to 3.00 |"), "{table}");
    }

    #[test]
    fn shares_of_the_limits() {
        let mut report = Report { threads: 2, limits: vec![run(0.0).limits], ..Report::default() };
        report.add_weights("a", Weights { bytes_per_token: 1e9, layer_parameters: 2e9 });
        report.add("a", "pp8", WAVELM, run(100.0));
        report.add("a", "tg8", WAVELM, run(25.0));
        report.add("a", "tg8", LLAMA, run(50.0));
        let table = report.markdown();
        assert!(table.contains("| pp8 | wavelm | 100.0 | 100.0 to 100.0 | 400.0 GOP/s | 40% | | |"), "{table}");
        assert!(table.contains("| tg8 | wavelm | 25.0 | 25.0 to 25.0 | 25.0 GB/s | 25% | | |"), "{table}");
        assert!(table.contains("50.0 GB/s | 50% | **0.50** | 0.50 to 0.50 |"), "{table}");
        assert!(table.contains("Memory, read by 2 threads between rounds: 100.0 GB/s (100.0 to 100.0)."), "{table}");
        assert!(
            table.contains("500 GOP/s (500 to 500) by 1 thread, 1000 GOP/s (1000 to 1000) by 2 threads."),
            "{table}"
        );
        assert_eq!(parsed(&report)[0]["int8_gop_per_second"]["one_thread"]["median"], 500.0);
    }

    #[test]
    fn the_best_of_llama_cpp() {
        let mut report = Report::default();
        report.add("a", "pp8", WAVELM, run(4.0));
        for (name, speed) in [("slow", 1.0), ("fast", 3.0), ("medium", 2.0)] {
            report.add("a", "pp8", (name, Kind::LlamaCpp), run(speed));
        }
        report.add("a", "pp8", OTHER, run(5.0));
        let best: Vec<_> = report.rows().iter().map(|row| row.best).collect();
        assert_eq!(best, [false, false, true, false, false]);
        assert!(report.markdown().contains("| **fast** |"));
    }

    #[test]
    fn says_what_failed() {
        let mut report = Report::default();
        report.add("a", "pp8", WAVELM, run(4.0));
        report.add_failure("a", "other", "cannot\nload | it");
        assert!(report.failed("a", "other") && !report.failed("b", "other"));
        assert!(report.markdown().contains("| a | | other | cannot load   it | | | | | |\n"));
        assert_eq!(parsed(&report)[2]["error"], "cannot\nload | it");
    }

    #[test]
    fn groups_tests_of_a_model() {
        let mut report = Report::default();
        for test in ["pp8", "tg4"] {
            report.add("a", test, WAVELM, run(1.0));
        }
        report.add("a", "pp8", OTHER, run(2.0));
        let rows = report.rows();
        let order: Vec<_> = rows.iter().map(|row| (row.series.test.as_str(), row.series.engine.as_str())).collect();
        assert_eq!(order, [("pp8", "wavelm"), ("pp8", "other"), ("tg4", "wavelm")]);
    }
}
