//! Collects speeds over rounds, and prints them as a table or as JSON.

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

/// The speeds of one engine in one test of one model, a round each.
#[derive(Debug)]
struct Series {
    model: String,
    test: String,
    engine: String,
    speeds: Vec<f64>,
}

/// All speeds. Engines keep the order in which they first appear; the first one is compared with the others.
#[derive(Debug, Default)]
pub struct Report {
    series: Vec<Series>,
}

impl Report {
    /// Adds the speed of one round.
    pub fn add(&mut self, model: &str, test: &str, engine: &str, speed: f64) {
        let same = |s: &&mut Series| s.model == model && s.test == test && s.engine == engine;
        match self.series.iter_mut().find(same) {
            Some(series) => series.speeds.push(speed),
            None => self.series.push(Series {
                model: model.into(),
                test: test.into(),
                engine: engine.into(),
                speeds: vec![speed],
            }),
        }
    }

    /// Every series with its range and, but for the first engine, the first engine's speed divided by its own: round by
    /// round, since what slows one program of a round tends to slow its neighbours too.
    fn rows(&self) -> impl Iterator<Item = (&Series, Range, Option<Range>)> {
        let mut groups: Vec<(&str, &str)> = Vec::new();
        for s in &self.series {
            if !groups.contains(&(&s.model, &s.test)) {
                groups.push((&s.model, &s.test));
            }
        }
        groups.into_iter().flat_map(|(model, test)| {
            let group: Vec<&Series> = self.series.iter().filter(|s| s.model == model && s.test == test).collect();
            let first = group[0];
            group.into_iter().filter_map(move |s| {
                let ratios = first.speeds.iter().zip(&s.speeds).map(|(ours, theirs)| ours / theirs).collect();
                let ratio = if std::ptr::eq(s, first) { None } else { Range::of(ratios) };
                Some((s, Range::of(s.speeds.clone())?, ratio))
            })
        })
    }

    /// A table for people.
    pub fn markdown(&self) -> String {
        let ours = self.series.first().map_or("first", |s| &s.engine);
        let mut out = format!("| model | test | program | tokens/s | range | {ours} ÷ it | range |\n");
        out += "|---|---|---|--:|--:|--:|--:|\n";
        for (s, speed, ratio) in self.rows() {
            let ratio =
                ratio.map_or_else(|| " | ".to_string(), |r| format!("{:.2}x | {:.2} to {:.2}", r.median, r.min, r.max));
            let (Series { model, test, engine, .. }, Range { median, min, max }) = (s, speed);
            // Writing to a string cannot fail.
            let _ = writeln!(out, "| {model} | {test} | {engine} | {median:.1} | {min:.1} to {max:.1} | {ratio} |");
        }
        out
    }

    /// The same for programs: one object per line.
    pub fn json_lines(&self) -> String {
        let line = |(s, speed, ratio): (&Series, Range, Option<Range>)| {
            let ratio = ratio.map_or(Value::Null, Range::json);
            let (model, test, engine) = (&s.model, &s.test, &s.engine);
            let value = json!({"model": model, "test": test, "program": engine, "rounds": s.speeds.len(),
                               "tokens_per_second": speed.json(), "ratio": ratio});
            format!("{value}\n")
        };
        self.rows().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            report.add("m.gguf", "pp512", "wavelm", ours);
            report.add("m.gguf", "pp512", "other", theirs);
        }
        let lines = report.json_lines();
        let rows: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0]["ratio"], Value::Null);
        assert_eq!(rows[1]["ratio"], json!({"median": 2.0, "min": 2.0, "max": 3.0}));
        assert_eq!(rows[1]["tokens_per_second"]["median"], 5.0);
        assert_eq!(rows[1]["rounds"], 3);
        let table = report.markdown();
        assert!(table.contains("| m.gguf | pp512 | other | 5.0 | 4.0 to 10.0 | 2.00x | 2.00 to 3.00 |"), "{table}");
    }

    #[test]
    fn groups_tests_of_a_model() {
        let mut report = Report::default();
        for test in ["pp8", "tg4"] {
            report.add("a", test, "wavelm", 1.0);
        }
        report.add("a", "pp8", "other", 2.0);
        let order: Vec<_> = report.rows().map(|(s, ..)| (s.test.as_str(), s.engine.as_str())).collect();
        assert_eq!(order, [("pp8", "wavelm"), ("pp8", "other"), ("tg4", "wavelm")]);
    }
}
