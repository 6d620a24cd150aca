//! Compares attention with the textbook formula in `f64`, over a cache that the store kernels
//! wrote.

use super::*;
use crate::backend::KvType;
use crate::backend::cpu::kv::{KvLayout, PAGE_LEN, StorePlan};
use crate::simd::Isa;

/// Uniform numbers (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Numbers in -`limit` to `limit`.
    fn vec(&mut self, len: usize, limit: f32) -> Vec<f32> {
        (0..len).map(|_| ((self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * limit).collect()
    }
}

/// Pages of one sequence. Positions that are never stored are NaN, so that reading them shows.
struct Sequence {
    memory: Vec<Vec<u64>>,
    pages: Vec<*mut u8>,
    /// Rows stored before the span.
    past: usize,
    rows: usize,
}

const LAYER_OFFSET: usize = 192;

impl Sequence {
    fn new(layout: &KvLayout, past: usize, rows: usize) -> Self {
        let words = (LAYER_OFFSET + layout.bytes()) / 8;
        let mut memory: Vec<_> = (0..(past + rows).div_ceil(PAGE_LEN)).map(|_| vec![u64::MAX; words]).collect();
        let pages = memory.iter_mut().map(|page| page.as_mut_ptr().cast()).collect();
        Self { memory, pages, past, rows }
    }

    fn span(&self, first_row: usize) -> Span<'_> {
        Span { first_row, rows: self.rows, first_pos: self.past, pages: &self.pages }
    }

    /// Decodes the stored keys, or else values, of a head, one number at a time.
    fn decode(&self, layout: &KvLayout, key: bool, head: usize) -> Vec<Vec<f64>> {
        let row = |position: usize| {
            let page: &[u8] = bytemuck::cast_slice(&self.memory[position / PAGE_LEN]);
            let layer = &page[LAYER_OFFSET..];
            let f16 = |at: usize| f64::from(half::f16::from_le_bytes([layer[at], layer[at + 1]]).to_f32());
            let number = |d: usize| {
                let (at, scale) = layout.place(key, head, position % PAGE_LEN, d);
                match layout.kv_type {
                    KvType::F32 => f64::from(f32::from_le_bytes(layer[at..][..4].try_into().unwrap())),
                    KvType::F16 => f16(at),
                    KvType::Q8_0 => f64::from(layer[at] as i8) * f16(scale),
                }
            };
            (0..if key { layout.keys.dim } else { layout.values.dim }).map(number).collect()
        };
        (0..self.past + self.rows).map(row).collect()
    }
}

fn params(heads: usize, kv_heads: usize, k_dim: usize, v_dim: usize) -> AttnParams {
    let scale = 1.0 / (k_dim as f32).sqrt();
    AttnParams { heads, kv_heads, k_dim, v_dim, scale, window: None, softcap: None, causal: true }
}

/// Attention of the query at `position` by definition, over the keys and values of its head.
fn expected(p: &AttnParams, position: usize, q: &[f32], keys: &[Vec<f64>], values: &[Vec<f64>]) -> Vec<f64> {
    let sees = |other: usize| {
        (!p.causal || other <= position) && p.window.is_none_or(|w| other as i64 > position as i64 - w as i64)
    };
    let mut scores = vec![];
    for other in (0..keys.len()).filter(|&other| sees(other)) {
        let dot: f64 = q.iter().zip(&keys[other]).map(|(&q, k)| f64::from(q) * k).sum();
        let score = dot * f64::from(p.scale);
        scores.push((other, p.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())));
    }
    let max = scores.iter().map(|s| s.1).fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|s| (s.1 - max).exp()).sum();
    let mut out = vec![0.0; p.v_dim];
    for (other, score) in scores {
        let weight = (score - max).exp() / sum;
        for (out, v) in out.iter_mut().zip(&values[other]) {
            *out += weight * v;
        }
    }
    out
}

/// A batch that was stored, to attend to.
struct Batch {
    params: AttnParams,
    layout: KvLayout,
    sequences: Vec<Sequence>,
    q: Vec<f32>,
}

impl Batch {
    /// Sequences of `(past, rows)`. The past is stored first, as an earlier batch.
    fn new(isa: Isa, params: AttnParams, kv_type: KvType, shapes: &[(usize, usize)], random: &mut Random) -> Self {
        let layout = KvLayout::for_layer(kv_type, params.kv_heads, params.k_dim, params.v_dim).unwrap();
        let sequences: Vec<_> = shapes.iter().map(|&(past, rows)| Sequence::new(&layout, past, rows)).collect();
        let rows: usize = shapes.iter().map(|s| s.1).sum();
        for past in [true, false] {
            let mut first_row = 0;
            let mut spans = vec![];
            for seq in &sequences {
                let (rows, first_pos) = if past { (seq.past, 0) } else { (seq.rows, seq.past) };
                spans.push(Span { first_row, rows, first_pos, pages: &seq.pages });
                first_row += rows;
            }
            let k = random.vec(first_row * params.kv_heads * params.k_dim, 2.0);
            let v = random.vec(first_row * params.kv_heads * params.v_dim, 1.0);
            let plan = StorePlan::new(&layout, &spans).unwrap();
            for item in 0..plan.items() {
                // SAFETY: the pages belong to this test, and are large enough.
                unsafe { plan.run_item(isa, LAYER_OFFSET, item, &k, &v) };
            }
        }
        let q = random.vec(rows * params.heads * params.k_dim, 3.0);
        Self { params, layout, sequences, q }
    }

    fn spans(&self) -> Vec<Span<'_>> {
        let mut first_row = 0;
        let mut spans = vec![];
        for seq in &self.sequences {
            spans.push(seq.span(first_row));
            first_row += seq.rows;
        }
        spans
    }

    fn out_len(&self) -> usize {
        self.q.len() / self.params.k_dim * self.params.v_dim
    }

    fn run(&self, isa: Isa) -> Vec<f32> {
        let spans = self.spans();
        let plan = AttentionPlan::new(&self.params, &self.layout, &spans).unwrap();
        let mut out = vec![f32::NAN; self.out_len()];
        self.run_plan(isa, &plan, &mut out);
        out
    }

    fn run_plan(&self, isa: Isa, plan: &AttentionPlan, out: &mut [f32]) {
        let mut scratch = AttentionScratch::default();
        for item in 0..plan.items() {
            // SAFETY: everything belongs to this test, was stored, and is large enough. Items run
            // one by one.
            unsafe { plan.run_item(isa, LAYER_OFFSET, item, &self.q, &mut out[..], &mut scratch) }.unwrap();
        }
    }

    /// Cuts each span into spans of `rows`, as in passes of `rows` tokens.
    fn cut(&self, rows: usize) -> Vec<Span<'_>> {
        let mut spans = vec![];
        for span in self.spans() {
            for row in (0..span.rows).step_by(rows) {
                let (first_row, first_pos) = (span.first_row + row, span.first_pos + row);
                spans.push(Span { first_row, first_pos, rows: rows.min(span.rows - row), ..span });
            }
        }
        spans
    }

    /// Asserts that outputs depend neither on how rows are cut into passes, nor on how a pass is
    /// cut into items.
    fn check_cuts(&self, isa: Isa, what: &str) {
        let bits = |out: &[f32]| out.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let run = |spans: &[Span], items: usize| {
            let plan = AttentionPlan::with_items(&self.params, &self.layout, spans, items).unwrap();
            let mut out = vec![f32::NAN; self.out_len()];
            self.run_plan(isa, &plan, &mut out);
            bits(&out)
        };
        let expected = run(&self.cut(1), 32);
        assert!(expected.iter().all(|&x| f32::from_bits(x).is_finite()), "{isa:?} {what}");
        for (rows, items) in [(1, 1000), (2, 3), (3, 1), (5, 32), (8, 1000), (9, 1000), (16, 5), (48, 1000), (300, 1)] {
            let spans = self.cut(rows);
            assert!(run(&spans, items) == expected, "{isa:?} {what}: all passes of {rows} at once, {items} items");
            let mut out = vec![f32::NAN; self.out_len()];
            for span in &spans {
                let plan = AttentionPlan::new(&self.params, &self.layout, std::slice::from_ref(span)).unwrap();
                self.run_plan(isa, &plan, &mut out);
            }
            assert!(bits(&out) == expected, "{isa:?} {what}: passes of {rows}");
        }
    }

    /// Compares every output with the definition.
    fn check(&self, isa: Isa, what: &str) {
        let out = self.run(isa);
        let mut first_row = 0;
        let AttnParams { heads, kv_heads, k_dim, v_dim, .. } = self.params;
        for (index, seq) in self.sequences.iter().enumerate() {
            for head in 0..heads {
                let kv_head = head / (heads / kv_heads);
                let keys = seq.decode(&self.layout, true, kv_head);
                let values = seq.decode(&self.layout, false, kv_head);
                for row in 0..seq.rows {
                    let at = (first_row + row) * heads + head;
                    let q = &self.q[at * k_dim..][..k_dim];
                    let expected = expected(&self.params, seq.past + row, q, &keys, &values);
                    for (d, (&got, expected)) in out[at * v_dim..][..v_dim].iter().zip(expected).enumerate() {
                        let error = (f64::from(got) - expected).abs();
                        assert!(error < 1e-5, "{what}: {got} for {expected} in span {index} {row} {head} {d}");
                    }
                }
            }
            first_row += seq.rows;
        }
    }
}

macro_rules! for_each_isa {
    ($($test:ident)*) => { $(
        #[test]
        fn $test() {
            for isa in Isa::available() {
                super::$test(isa);
            }
        }
    )* };
}

mod each {
    use super::Isa;
    for_each_isa! {
        random_batches decode prompt windows softcap bidirectional odd_dimensions many_heads_to_one
        nothing_visible large_scores order_of_items long_contexts pages_that_a_window_left cuts_change_no_bit
        cuts_change_no_bit_of_a_long_context
    }
}

const TYPES: [KvType; 3] = [KvType::F32, KvType::F16, KvType::Q8_0];

/// The first `count` cases where an emulator may run them, because it takes a hundred times as
/// long; all cases elsewhere.
fn few<T>(count: usize, cases: &[T]) -> &[T] {
    if cfg!(target_arch = "aarch64") { cases.get(..count).unwrap_or(cases) } else { cases }
}

fn random_batches(isa: Isa) {
    let mut random = Random(0x5eed);
    for case in 0..60 {
        let kv_heads = random.pick(&[1, 2, 3]);
        let group = random.pick(&[1, 2, 3, 4, 5, 7]);
        let dims = random.pick(&[(8, 8), (64, 64), (80, 80), (72, 40), (96, 128)]);
        let mut p = params(kv_heads * group, kv_heads, dims.0, dims.1);
        p.window = random.pick(&[None, None, Some(1), Some(17), Some(64), Some(100)]);
        p.softcap = random.pick(&[None, None, Some(2.0)]);
        p.causal = random.below(5) != 0;
        let mut shapes = vec![];
        for _ in 0..1 + random.below(4) {
            let rows = random.pick(&[1, 1, 1, 2, 3, 13, 64, 70]);
            shapes.push((random.pick(&[0, 1, 5, 63, 64, 65, 127, 200]), rows));
        }
        let kv_type = random.pick(&TYPES);
        let batch = Batch::new(isa, p, kv_type, &shapes, &mut random);
        batch.check(isa, &format!("{isa:?} case {case}: {p:?} {kv_type:?} {shapes:?}"));
    }
}

fn decode(isa: Isa) {
    let mut random = Random(1);
    for kv_type in TYPES {
        for past in [0, 1, 63, 64, 127, 128, 129, 700] {
            Batch::new(isa, params(9, 3, 64, 64), kv_type, &[(past, 1)], &mut random)
                .check(isa, &format!("{isa:?} {kv_type:?} {past}"));
        }
    }
}

fn prompt(isa: Isa) {
    let mut random = Random(2);
    for kv_type in TYPES {
        for (past, rows) in [(0, 33), (0, 150), (30, 101), (64, 64)] {
            Batch::new(isa, params(9, 3, 64, 64), kv_type, &[(past, rows)], &mut random)
                .check(isa, &format!("{isa:?} {kv_type:?} {past} {rows}"));
        }
    }
}

fn windows(isa: Isa) {
    let mut random = Random(3);
    for window in [1, 2, 31, 63, 64, 65, 128, 1000] {
        let p = AttnParams { window: Some(window), ..params(4, 2, 32, 32) };
        let shapes = [(0, 150), (300, 1), (200, 40)];
        Batch::new(isa, p, KvType::F16, &shapes, &mut random).check(isa, &format!("{isa:?} window {window}"));
    }
}

fn softcap(isa: Isa) {
    let mut random = Random(4);
    for cap in [0.5, 50.0] {
        let p = AttnParams { softcap: Some(cap), ..params(8, 4, 32, 32) };
        Batch::new(isa, p, KvType::F16, &[(100, 1), (10, 50)], &mut random).check(isa, &format!("{isa:?} cap {cap}"));
    }
}

fn bidirectional(isa: Isa) {
    let mut random = Random(5);
    let p = AttnParams { causal: false, ..params(4, 4, 64, 64) };
    Batch::new(isa, p, KvType::F32, &[(0, 70), (0, 5), (0, 1)], &mut random).check(isa, &format!("{isa:?}"));
}

fn odd_dimensions(isa: Isa) {
    let mut random = Random(6);
    for kv_type in TYPES {
        for (k_dim, v_dim) in [(1, 1), (7, 3), (72, 72), (80, 80), (96, 96), (112, 112), (192, 128), (256, 256)] {
            Batch::new(isa, params(2, 1, k_dim, v_dim), kv_type, &[(90, 1), (0, 20)], &mut random)
                .check(isa, &format!("{isa:?} {kv_type:?} {k_dim} {v_dim}"));
        }
    }
}

/// Tiles that begin in the middle of a group.
fn many_heads_to_one(isa: Isa) {
    let mut random = Random(7);
    for heads in [8, 9, 16, 71, 128] {
        Batch::new(isa, params(heads, 1, 64, 64), KvType::F16, &[(66, 1), (5, 3)], &mut random)
            .check(isa, &format!("{isa:?} {heads}"));
    }
}

fn nothing_visible(isa: Isa) {
    let p = AttnParams { window: Some(0), ..params(2, 2, 32, 32) };
    let batch = Batch::new(isa, p, KvType::F16, &[(64, 1), (100, 30)], &mut Random(8));
    assert!(batch.run(isa).iter().all(|&x| x == 0.0));
}

/// Scores beyond the range of `exp` in f32.
fn large_scores(isa: Isa) {
    let mut random = Random(9);
    let p = AttnParams { scale: 30.0, ..params(3, 1, 16, 16) };
    let batch = Batch::new(isa, p, KvType::F32, &[(300, 1), (20, 40)], &mut random);
    let out = batch.run(isa);
    assert!(out.iter().all(|x| x.abs() <= 1.0), "a weighted mean of values within -1 to 1");
}

/// The order of items and earlier layers change nothing.
fn order_of_items(isa: Isa) {
    let mut random = Random(10);
    let batch = Batch::new(isa, params(6, 2, 64, 64), KvType::F16, &[(900, 1), (70, 80), (500, 2)], &mut random);
    let in_order = batch.run(isa);
    let spans = batch.spans();
    let plan = AttentionPlan::new(&batch.params, &batch.layout, &spans).unwrap();
    for round in 0..3 {
        let mut items: Vec<_> = (0..plan.items()).collect();
        for i in (1..items.len()).rev() {
            items.swap(i, random.below(i + 1));
        }
        let mut out = vec![f32::NAN; batch.out_len()];
        let mut scratch = [AttentionScratch::default(), AttentionScratch::default()];
        for item in items {
            let scratch = &mut scratch[random.below(2)];
            // SAFETY: as in `Batch::run_plan`.
            unsafe { plan.run_item(isa, LAYER_OFFSET, item, &batch.q, &mut out[..], scratch) }.unwrap();
        }
        assert!(out == in_order, "{isa:?} round {round}");
    }
}

/// With enough positions, an item takes several key-value heads.
fn long_contexts(isa: Isa) {
    let mut random = Random(14);
    for kv_type in TYPES {
        for (past, window) in [(447, None), (448, None), (1100, None), (2100, Some(1500))] {
            let p = AttnParams { window, ..params(32, 16, 16, 24) };
            let shapes = [(past, 1), (past + 9, 3), (3, 1)];
            Batch::new(isa, p, kv_type, &shapes, &mut random).check(isa, &format!("{isa:?} {kv_type:?} {past}"));
        }
    }
}

/// Various heads, sizes and types; windows that begin within groups of keys and within pages;
/// several sequences; positions across the ends of segments.
fn cuts_change_no_bit(isa: Isa) {
    let mut random = Random(20);
    for kv_type in TYPES {
        for &group in few(1, &[3, 1, 2, 4, 8]) {
            let p = params(2 * group, 2, 32, 32);
            let shapes = [(random.below(300), 48), (220 + random.below(30), 60)];
            Batch::new(isa, p, kv_type, &shapes, &mut random)
                .check_cuts(isa, &format!("{kv_type:?} {group} {shapes:?}"));
        }
        for &(k_dim, v_dim) in few(2, &[(7, 3), (33, 40), (1, 1), (80, 80), (72, 112)]) {
            let p = params(3, 1, k_dim, v_dim);
            Batch::new(isa, p, kv_type, &[(230, 50)], &mut random)
                .check_cuts(isa, &format!("{kv_type:?} {k_dim} {v_dim}"));
        }
        let windows = [(70, Some(2.0)), (1, None), (20, Some(2.0)), (64, None), (100, Some(50.0)), (513, None)];
        for &(window, cap) in few(1, &windows) {
            let p = AttnParams { window: Some(window), softcap: cap, ..params(4, 2, 32, 32) };
            let shapes = [(0, 70), (740, 60)];
            Batch::new(isa, p, kv_type, &shapes, &mut random).check_cuts(isa, &format!("{kv_type:?} window {window}"));
        }
        let p = AttnParams { softcap: Some(5.0), ..params(4, 1, 48, 48) };
        Batch::new(isa, p, kv_type, &[(3, 48)], &mut random).check_cuts(isa, &format!("{kv_type:?} capped"));
        // Powers that are zero, and values of both signs of zero.
        let p = AttnParams { scale: 30.0, ..params(3, 1, 16, 16) };
        Batch::new(isa, p, kv_type, &[(500, 48)], &mut random).check_cuts(isa, &format!("{kv_type:?} large scores"));
    }
}

/// A past long enough for segments to grow.
fn cuts_change_no_bit_of_a_long_context(isa: Isa) {
    let mut random = Random(21);
    let cases = [(KvType::F16, 1_400), (KvType::Q8_0, 16_370), (KvType::F16, 5_000), (KvType::F32, 4_990)];
    for &(kv_type, past) in few(1, &cases) {
        for window in [None, Some(3_000)] {
            let p = AttnParams { window, ..params(6, 2, 16, 16) };
            let shapes = [(past, 48), (100, 9)];
            Batch::new(isa, p, kv_type, &shapes, &mut random)
                .check_cuts(isa, &format!("{kv_type:?} {past} {window:?}"));
        }
    }
}

/// Pages before the window may be gone.
fn pages_that_a_window_left(isa: Isa) {
    let p = AttnParams { window: Some(70), ..params(4, 2, 64, 64) };
    let mut batch = Batch::new(isa, p, KvType::Q8_0, &[(400, 1), (300, 40)], &mut Random(11));
    let complete = batch.run(isa);
    batch.sequences[0].pages[..5].fill(std::ptr::null_mut());
    batch.sequences[1].pages[..3].fill(std::ptr::null_mut());
    assert!(batch.run(isa) == complete);
}

/// Real threads, each with its own scratch, race for items.
#[test]
fn threads_agree() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    struct Shared(*mut [f32]);
    // SAFETY: the items write to different parts.
    unsafe impl Sync for Shared {}

    let isa = Isa::best();
    let batch = Batch::new(isa, params(6, 2, 64, 64), KvType::F16, &[(1500, 1), (0, 90)], &mut Random(12));
    let alone = batch.run(isa);
    let spans = batch.spans();
    let plan = AttentionPlan::new(&batch.params, &batch.layout, &spans).unwrap();
    for threads in [2, 5] {
        let mut out = vec![f32::NAN; batch.out_len()];
        let shared = Shared(&mut out[..]);
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let shared = &shared;
                    let mut scratch = AttentionScratch::default();
                    loop {
                        let item = next.fetch_add(1, Ordering::Relaxed);
                        if item >= plan.items() {
                            break;
                        }
                        // SAFETY: one thread runs each item, once; `out` outlives the scope.
                        unsafe { plan.run_item(isa, LAYER_OFFSET, item, &batch.q, shared.0, &mut scratch) }.unwrap();
                    }
                });
            }
        });
        assert!(out == alone, "{threads} threads");
    }
}

/// A sequence's result does not depend on the rest of the batch.
#[test]
fn spans_do_not_affect_each_other() {
    let isa = Isa::best();
    let together = Batch::new(isa, params(6, 2, 64, 64), KvType::F16, &[(700, 1), (0, 90), (20, 1)], &mut Random(13));
    let all = together.run(isa);
    let spans = together.spans();
    let plan = AttentionPlan::new(&together.params, &together.layout, &spans[1..2]).unwrap();
    let mut out = vec![0.0; all.len()];
    for item in 0..plan.items() {
        let scratch = &mut AttentionScratch::default();
        // SAFETY: as in `Batch::run_plan`.
        unsafe { plan.run_item(isa, LAYER_OFFSET, item, &together.q, &mut out[..], scratch) }.unwrap();
    }
    let rows = 6 * 64..6 * 64 * 91;
    assert!(out[rows.clone()] == all[rows]);
    assert!(out[..6 * 64].iter().all(|&x| x == 0.0), "rows of no span are left alone");
}

#[test]
fn inconsistent_shapes_are_refused() {
    let layout = KvLayout::for_layer(KvType::F16, 2, 64, 64).unwrap();
    let pages = [std::ptr::null_mut(); 2];
    let span = Span { first_row: 0, rows: 1, first_pos: 127, pages: &pages };
    assert!(AttentionPlan::new(&params(4, 2, 64, 64), &layout, &[span]).is_ok());
    for wrong in [params(3, 2, 64, 64), params(0, 2, 64, 64), params(4, 4, 64, 64), params(4, 2, 32, 64)] {
        assert!(AttentionPlan::new(&wrong, &layout, &[span]).is_err(), "{wrong:?}");
    }
    for wrong in [
        Span { first_pos: 128, ..span },
        Span { first_pos: usize::MAX, ..span },
        Span { first_row: usize::MAX, ..span },
        Span { rows: 2, ..span },
        Span { first_row: usize::MAX / 64, ..span },
    ] {
        assert!(AttentionPlan::new(&params(4, 2, 64, 64), &layout, &[wrong]).is_err(), "{wrong:?}");
        assert!(StorePlan::new(&layout, &[wrong]).is_err(), "{wrong:?}");
    }
}
