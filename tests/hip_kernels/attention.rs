//! Rotary embeddings, the paged cache and attention over it.

use crate::args;
use crate::common::{Random, assert_near};
use crate::rows::assert_quantized;
use crate::sim::{Buffer, Sim, sims};
use half::f16;
use std::ops::Range;

#[derive(Clone, Copy, PartialEq, Debug)]
enum KvType {
    F32,
    F16,
    Q8,
}

const KV_TYPES: [(KvType, &str); 3] = [(KvType::F32, "f32"), (KvType::F16, "f16"), (KvType::Q8, "q8_0")];

impl KvType {
    fn padded(self, dim: usize) -> usize {
        dim.next_multiple_of(if self == Self::Q8 { 32 } else { 16 })
    }

    /// Bytes of a head in a page.
    fn head_bytes(self, dim: usize) -> usize {
        let padded = self.padded(dim);
        let row = match self {
            Self::F32 => padded * 4,
            Self::F16 => padded * 2,
            Self::Q8 => padded + padded / 32 * 2,
        };
        (64 * row).next_multiple_of(64)
    }

    /// The bytes that a row is stored as, its scales, and the numbers that these stand for.
    fn store(self, x: &[f32]) -> (Vec<u8>, Vec<u8>, Vec<f32>) {
        let mut x = x.to_vec();
        x.resize(self.padded(x.len()), 0.0);
        match self {
            Self::F32 => (bytemuck::cast_slice(&x).to_vec(), Vec::new(), x),
            Self::F16 => {
                let halves: Vec<f16> = x.iter().map(|x| f16::from_f32(x.clamp(-65504.0, 65504.0))).collect();
                let bytes = halves.iter().flat_map(|h| h.to_le_bytes()).collect();
                (bytes, Vec::new(), halves.into_iter().map(f16::to_f32).collect())
            }
            Self::Q8 => {
                let (mut bytes, mut scales, mut values) = (Vec::new(), Vec::new(), Vec::new());
                for block in x.chunks(32) {
                    let max = block.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
                    let scale = f16::from_f32((max / 127.0).min(65504.0));
                    let step = scale.to_f32();
                    let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
                    scales.extend(scale.to_le_bytes());
                    for x in block {
                        let q = (x * inverse).clamp(-127.0, 127.0).round_ties_even();
                        bytes.push(q as i8 as u8);
                        values.push(q * step);
                    }
                }
                (bytes, scales, values)
            }
        }
    }
}

/// Angles as the host computes them: cosines, then sines.
fn angles(rows: usize, pairs: usize, random: &mut Random) -> Vec<f32> {
    let angles: Vec<f32> = (0..rows * pairs).map(|_| random.normal()).collect();
    angles.chunks(pairs.max(1)).flat_map(|row| row.iter().map(|a| a.cos()).chain(row.iter().map(|a| a.sin()))).collect()
}

/// Rotates a head.
fn rotate(x: &mut [f32], angles: &[f32], neox: bool) {
    let pairs = angles.len() / 2;
    for i in 0..pairs {
        let (a, b) = if neox { (i, i + pairs) } else { (2 * i, 2 * i + 1) };
        let (cosine, sine) = (angles[i], angles[pairs + i]);
        (x[a], x[b]) = (x[a] * cosine - x[b] * sine, x[a] * sine + x[b] * cosine);
    }
}

#[test]
fn rotations_are_exact() {
    let mut random = Random::new(20);
    for sim in sims() {
        for (heads, dim, pairs) in [(3, 64, 32), (1, 80, 20), (2, 256, 128)] {
            for neox in [false, true] {
                let (tokens, rows) = (3, 5);
                let turns = angles(rows, pairs, &mut random);
                let row_of: Vec<u32> = (0..tokens).map(|_| random.below(rows) as u32).collect();
                let mut x = random.normals(tokens * heads * dim);
                let memory = Buffer::new(&x);
                sim.launch(
                    "rope",
                    [heads, tokens, 1],
                    args![&memory, &Buffer::new(&turns), &Buffer::new(&row_of), heads, dim, pairs, usize::from(neox)],
                );
                for (i, head) in x.chunks_mut(dim).enumerate() {
                    rotate(head, &turns[row_of[i / heads] as usize * 2 * pairs..][..2 * pairs], neox);
                }
                assert_eq!(memory.read::<f32>(), x, "{heads} heads of {dim}, neox {neox}");
            }
        }
    }
}

/// What an attention layer is.
#[derive(Clone, Copy, Debug)]
struct Layer {
    ty: KvType,
    heads: usize,
    kv_heads: usize,
    k_dim: usize,
    v_dim: usize,
    window: usize,
    softcap: f32,
}

const LAYER_OFFSET: usize = 192;

impl Layer {
    fn page_bytes(&self) -> usize {
        LAYER_OFFSET + self.kv_heads * (self.ty.head_bytes(self.k_dim) + self.ty.head_bytes(self.v_dim)) + 64
    }

    /// The bytes and scales of a row in a page: offsets.
    fn row(&self, is_key: bool, head: usize, slot: usize) -> (usize, usize) {
        let dim = if is_key { self.k_dim } else { self.v_dim };
        let start = if is_key { 0 } else { self.kv_heads * self.ty.head_bytes(self.k_dim) };
        let head = LAYER_OFFSET + start + head * self.ty.head_bytes(dim);
        let padded = self.ty.padded(dim);
        let bytes = match self.ty {
            KvType::F32 => 4,
            KvType::F16 => 2,
            KvType::Q8 => 1,
        };
        (head + slot * padded * bytes, head + 64 * padded + slot * padded / 32 * 2)
    }
}

/// Sequences in a cache, stored by the kernel, and what their keys and values are.
struct Cache {
    layer: Layer,
    pool: Buffer,
    table: Buffer,
    table_len: usize,
    /// For each sequence, position and head: keys and values as stored.
    keys: Vec<Vec<Vec<f32>>>,
    values: Vec<Vec<Vec<f32>>>,
}

/// The tokens of all sequences from `first` on, as (sequence, position).
fn tokens_of(lengths: &[usize], first: impl Fn(usize) -> usize) -> Vec<(usize, usize)> {
    lengths.iter().enumerate().flat_map(|(s, &len)| (first(s)..len).map(move |p| (s, p))).collect()
}

fn columns<T>(tokens: &[(usize, usize)], f: impl Fn(&(usize, usize)) -> T) -> Vec<T> {
    tokens.iter().map(f).collect()
}

/// Stores sequences of these lengths, of random numbers, and checks each byte that was stored.
fn fill(sim: &Sim, layer: Layer, lengths: &[usize], random: &mut Random) -> Cache {
    let rows = lengths.iter().sum::<usize>() * layer.kv_heads;
    let (k, v) = (random.normals(rows * layer.k_dim), random.normals(rows * layer.v_dim));
    fill_with(sim, layer, lengths, &k, &v, layer.k_dim / 4, random)
}

/// The same with these keys and values, of which so many pairs are rotated.
fn fill_with(
    sim: &Sim,
    layer: Layer,
    lengths: &[usize],
    k: &[f32],
    v: &[f32],
    pairs: usize,
    random: &mut Random,
) -> Cache {
    let Layer { ty, heads, kv_heads, k_dim, v_dim, .. } = layer;
    let name = KV_TYPES.iter().find(|(t, _)| *t == ty).unwrap().1;
    let table_len = lengths.iter().map(|len| len / 64 + 1).max().unwrap() + 1;
    // Pages in a random order, for one position more; entries that are not needed name none.
    let pages: usize = lengths.iter().map(|len| len / 64 + 1).sum();
    let mut free: Vec<u32> = (0..pages as u32 + 2).collect();
    let mut table = vec![u32::MAX; lengths.len() * table_len];
    for (s, len) in lengths.iter().enumerate() {
        for page in 0..=len / 64 {
            table[s * table_len + page] = free.swap_remove(random.below(free.len()));
        }
    }
    let tokens = tokens_of(lengths, |_| 0);
    let n = tokens.len();
    let mut q = random.normals(n * heads * k_dim);
    let neox = kv_heads % 2 == 1;
    let turns = angles(n, pairs, random);
    let (pool, q_memory) = (Buffer::unset::<u8>((pages + 2) * layer.page_bytes()), Buffer::new(&q));
    let cache_table = Buffer::new(&table);
    sim.launch(
        &format!("store_kv_{name}"),
        [heads + 2 * kv_heads, n, 1],
        args![
            &q_memory,
            &Buffer::new(k),
            &Buffer::new(v),
            &Buffer::new(&turns),
            None::<&Buffer>,
            &pool,
            &cache_table,
            &Buffer::new(&columns(&tokens, |t| t.0 as u32)),
            &Buffer::new(&columns(&tokens, |t| t.1 as u32)),
            heads,
            kv_heads,
            k_dim,
            v_dim,
            pairs,
            usize::from(neox),
            table_len,
            LAYER_OFFSET as u64,
            layer.page_bytes() as u64,
        ],
    );

    let angles_of = |token: usize| &turns[token * 2 * pairs..][..2 * pairs];
    for (i, head) in q.chunks_mut(k_dim).enumerate() {
        rotate(head, angles_of(i / heads), neox);
    }
    assert_eq!(q_memory.read::<f32>(), q);
    let stored = pool.read::<u8>();
    let mut cache = Cache {
        layer,
        pool,
        table: cache_table,
        table_len,
        keys: vec![Vec::new(); lengths.len()],
        values: vec![Vec::new(); lengths.len()],
    };
    let mut written = 0;
    for (token, &(s, p)) in tokens.iter().enumerate() {
        for (is_key, dim, source) in [(true, k_dim, k), (false, v_dim, v)] {
            for head in 0..kv_heads {
                let mut row = source[(token * kv_heads + head) * dim..][..dim].to_vec();
                if is_key {
                    rotate(&mut row, angles_of(token), neox);
                }
                let (bytes, scales, values) = ty.store(&row);
                let page = table[s * table_len + p / 64] as usize * layer.page_bytes();
                let (at, scales_at) = layer.row(is_key, head, p % 64);
                assert_eq!(stored[page + at..][..bytes.len()], bytes, "{layer:?}, position {p}, head {head}");
                assert_eq!(stored[page + scales_at..][..scales.len()], scales, "{layer:?}, position {p}, head {head}");
                written += bytes.len() + scales.len();
                if is_key { &mut cache.keys[s] } else { &mut cache.values[s] }.push(values);
            }
        }
    }
    let poison = stored.iter().filter(|&&byte| byte == 0x7f).count();
    assert!(poison >= stored.len() - written, "something else was written");
    cache
}

impl Cache {
    /// The result for one head of a token, in f64.
    fn attend(&self, q: &[f32], head: usize, (sequence, position): (usize, usize), scale: f32) -> Vec<f64> {
        let Layer { heads, kv_heads, v_dim, window, softcap, .. } = self.layer;
        let kv_head = head / (heads / kv_heads);
        let start = if window > 0 { (position + 1).saturating_sub(window) } else { 0 };
        let (keys, values) = (&self.keys[sequence], &self.values[sequence]);
        let scores: Vec<f64> = (start..=position)
            .map(|p| {
                let dot: f64 = q
                    .iter()
                    .zip(&keys[p * kv_heads + kv_head])
                    .map(|(&q, &k)| f64::from(q) * f64::from(k))
                    .sum::<f64>();
                let (score, cap) = (dot * f64::from(scale), f64::from(softcap));
                if cap > 0.0 { cap * (score / cap).tanh() } else { score }
            })
            .collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let mut out = vec![0.0; v_dim];
        for (p, weight) in (start..).zip(weights) {
            for (out, &v) in out.iter_mut().zip(&values[p * kv_heads + kv_head]) {
                *out += weight / sum * f64::from(v);
            }
        }
        out
    }
}

impl Cache {
    /// The results for all heads of all tokens.
    fn attend_all(&self, q: &[f32], tokens: &[(usize, usize)], scale: f32) -> Vec<f64> {
        let Layer { heads, k_dim, .. } = self.layer;
        let heads_of = q.chunks(k_dim).enumerate();
        heads_of.flat_map(|(i, q)| self.attend(q, i % heads, tokens[i / heads], scale)).collect()
    }
}

fn layer(heads: usize, kv_heads: usize, k_dim: usize, v_dim: usize, window: usize, softcap: f32) -> Layer {
    Layer { ty: KvType::F16, heads, kv_heads, k_dim, v_dim, window, softcap }
}

#[test]
fn attention_of_few_queries_is_right() {
    let mut random = Random::new(21);
    let layers = [
        layer(9, 3, 64, 64, 0, 0.0),
        layer(4, 1, 128, 128, 0, 0.0),
        layer(2, 2, 80, 48, 40, 0.0),
        layer(14, 2, 64, 64, 0, 5.0),
        layer(16, 1, 256, 256, 70, 0.0),
        layer(3, 1, 20, 512, 1, 2.0),
    ];
    for sim in sims() {
        for (i, layer) in layers.into_iter().enumerate() {
            for (ty, name) in KV_TYPES {
                let layer = Layer { ty, ..layer };
                let Layer { heads, k_dim, v_dim, .. } = layer;
                let cache = fill(sim, layer, &[1, 64, 65, 200], &mut random);
                let tokens = [(0, 0), (1, 63), (2, 64), (3, 199), (3, 100)];
                let q = random.normals(tokens.len() * heads * k_dim);
                let scale = 1.0 / (k_dim as f32).sqrt();
                let expected = cache.attend_all(&q, &tokens, scale);
                for splits in [1, 2, 5_usize] {
                    let quantizes = v_dim % 32 == 0 && splits != 2;
                    for (kernel, n, tolerance) in kernels(layer, name, [1, 4, 8][(i + splits) % 3]) {
                        let case = Case { sim, cache: &cache, kernel: &kernel, n, splits, quantizes };
                        let out = case.attend(&q, &tokens, scale, None);
                        let what = format!("wave {}, {kernel}, {splits} splits, {layer:?}", sim.wave);
                        assert_near(&out, &expected, &[1.0], tolerance, &what);
                    }
                }
            }
        }
    }
}

/// The kernels for few queries that take a layer, the heads that a block of them takes, and how exact they are: that by
/// plain arithmetic for `n` heads, and that on matrix cores, where queries and weights are f16.
fn kernels(layer: Layer, ty: &str, n: usize) -> Vec<(String, usize, f64)> {
    let widest = [64, 128].into_iter().find(|widest| layer.k_dim.max(layer.v_dim) <= *widest);
    let waves = widest.filter(|_| layer.ty != KvType::F32).map(|n| (format!("attend_waves_{ty}_{n}"), 8, 4e-3));
    [(format!("attend_decode_{ty}_{n}"), n, 1e-5)].into_iter().chain(waves).collect()
}

/// Keys and values that are stored on the way, and how queries and keys are rotated.
struct Fresh<'a> {
    k: &'a [f32],
    v: &'a [f32],
    angles: &'a [f32],
    pairs: usize,
    neox: bool,
}

/// A launch of attention for few queries.
struct Case<'a> {
    sim: &'a Sim,
    cache: &'a Cache,
    kernel: &'a str,
    /// Heads that a block takes.
    n: usize,
    splits: usize,
    quantizes: bool,
}

impl Case<'_> {
    /// The result for these tokens; its int8 form is checked.
    fn attend(&self, q: &[f32], tokens: &[(usize, usize)], scale: f32, fresh: Option<Fresh<'_>>) -> Vec<f32> {
        let Layer { heads, kv_heads, k_dim, v_dim, window, softcap, .. } = self.cache.layer;
        let kernel = self.kernel;
        let elements = tokens.len() * heads * v_dim;
        let out = Buffer::unset::<f32>(elements);
        let partials = Buffer::unset::<f32>(tokens.len() * heads * self.splits * (v_dim.next_multiple_of(4) + 4));
        let (out_q, groups) = (Buffer::unset::<i8>(elements), Buffer::unset::<[u32; 2]>(elements / 32));
        let across = kv_heads * (heads / kv_heads).div_ceil(self.n);
        let counters = Buffer::new(&vec![0_u32; tokens.len() * across]);
        let memory = |f: fn(&Fresh<'_>) -> Vec<f32>| fresh.as_ref().map(|fresh| Buffer::new(&f(fresh)));
        let (k, v) = (memory(|f| f.k.to_vec()), memory(|f| f.v.to_vec()));
        let angles = memory(|f| f.angles.to_vec());
        self.sim.launch(
            kernel,
            [across, tokens.len(), self.splits],
            args![
                &Buffer::new(q),
                k.as_ref(),
                v.as_ref(),
                angles.as_ref(),
                &self.cache.pool,
                &self.cache.table,
                &Buffer::new(&columns(tokens, |t| t.0 as u32)),
                &Buffer::new(&columns(tokens, |t| t.1 as u32)),
                &out,
                self.quantizes.then_some(&out_q),
                self.quantizes.then_some(&groups),
                &partials,
                &counters,
                heads,
                kv_heads,
                k_dim,
                v_dim,
                scale,
                softcap,
                fresh.as_ref().map_or(0, |f| f.pairs),
                fresh.as_ref().map_or(0, |f| usize::from(f.neox)),
                window,
                self.cache.table_len,
                self.splits,
                LAYER_OFFSET as u64,
                self.cache.layer.page_bytes() as u64,
            ],
        );
        assert!(counters.read::<u32>().iter().all(|&n| n == 0), "{kernel} left its counters changed");
        let out = out.read::<f32>();
        if self.quantizes {
            let found: Vec<f64> = out.iter().copied().map(f64::from).collect();
            assert_quantized(&out_q, &groups, &found, kernel);
        }
        out
    }
}

#[test]
fn attention_stores_what_is_fresh() {
    let mut random = Random::new(23);
    let layers = [
        layer(9, 3, 64, 64, 0, 0.0),
        layer(4, 1, 128, 128, 0, 0.0),
        layer(2, 2, 80, 48, 40, 0.0),
        layer(16, 1, 256, 256, 70, 0.0),
        layer(3, 1, 20, 512, 1, 2.0),
    ];
    for sim in sims() {
        for (i, layer) in layers.into_iter().enumerate() {
            for (ty, name) in KV_TYPES {
                let layer = Layer { ty, ..layer };
                let Layer { heads, kv_heads, k_dim, v_dim, .. } = layer;
                // The next position of each sequence: two begin a page that nothing is in.
                let mut cache = fill(sim, layer, &[1, 64, 128, 199], &mut random);
                let tokens = [(0, 1), (1, 64), (2, 128), (3, 199)];
                let (pairs, neox) = (if i == 1 { 0 } else { k_dim / 4 }, i % 2 == 0);
                let turns = angles(tokens.len(), pairs, &mut random);
                let angles_of = |token: usize| &turns[token * 2 * pairs..][..2 * pairs];
                let (k, v) =
                    (random.normals(tokens.len() * kv_heads * k_dim), random.normals(tokens.len() * kv_heads * v_dim));
                let q = random.normals(tokens.len() * heads * k_dim);
                for (row, from) in k.chunks(k_dim).enumerate() {
                    let mut from = from.to_vec();
                    rotate(&mut from, angles_of(row / kv_heads), neox);
                    cache.keys[tokens[row / kv_heads].0].push(ty.store(&from).2);
                }
                for (row, from) in v.chunks(v_dim).enumerate() {
                    cache.values[tokens[row / kv_heads].0].push(ty.store(from).2);
                }
                let mut rotated = q.clone();
                for (row, q) in rotated.chunks_mut(k_dim).enumerate() {
                    rotate(q, angles_of(row / heads), neox);
                }
                let scale = 1.0 / (k_dim as f32).sqrt();
                let expected = cache.attend_all(&rotated, &tokens, scale);
                for splits in [1, 3] {
                    for (kernel, n, tolerance) in kernels(layer, name, [1, 4, 8][(i + splits) % 3]) {
                        let case = Case { sim, cache: &cache, kernel: &kernel, n, splits, quantizes: false };
                        let fresh = Fresh { k: &k, v: &v, angles: &turns, pairs, neox };
                        let out = case.attend(&q, &tokens, scale, Some(fresh));
                        let what = format!("wave {}, {kernel}, {splits} splits, {layer:?}", sim.wave);
                        assert_near(&out, &expected, &[1.0], tolerance, &what);
                    }
                }
                // They stay in the cache.
                let kernel = format!("attend_decode_{name}_4");
                let case = Case { sim, cache: &cache, kernel: &kernel, n: 4, splits: 2, quantizes: false };
                let out = case.attend(&rotated, &tokens, scale, None);
                assert_near(&out, &expected, &[1.0], 1e-5, &format!("{layer:?}, read again"));
            }
        }
    }
}

/// The result of a kernel for prompts whose blocks take `tile` queries, for `ranges` of tokens of a sequence each.
fn attend_prompt(
    sim: &Sim,
    cache: &Cache,
    kernel: &str,
    tile: usize,
    q: &[f32],
    tokens: &[(usize, usize)],
    ranges: &[Range<usize>],
) -> Vec<f32> {
    let Layer { heads, kv_heads, k_dim, v_dim, window, softcap, .. } = cache.layer;
    let group = heads / kv_heads;
    let heads_in_tile = group.min(tile);
    let mut tiles: Vec<[u32; 2]> = Vec::new();
    for range in ranges {
        let step = tile / heads_in_tile;
        tiles.extend(range.clone().step_by(step).map(|t| [t as u32, step.min(range.end - t) as u32]));
    }
    let out = Buffer::unset::<f32>(tokens.len() * heads * v_dim);
    sim.launch(
        kernel,
        [tiles.len(), kv_heads * group.div_ceil(heads_in_tile), 1],
        args![
            &Buffer::new(q),
            &cache.pool,
            &cache.table,
            &Buffer::new(&columns(tokens, |t| t.0 as u32)),
            &Buffer::new(&columns(tokens, |t| t.1 as u32)),
            &Buffer::new(&tiles),
            &out,
            heads,
            kv_heads,
            k_dim,
            v_dim,
            1.0 / (k_dim as f32).sqrt(),
            softcap,
            window,
            cache.table_len,
            LAYER_OFFSET as u64,
            cache.layer.page_bytes() as u64,
        ],
    );
    out.read::<f32>()
}

/// A first position that takes most of the weight, 15 bits above each of the 8,192 after it, which have a fifth of all
/// together: as halves, their weights are below the normal numbers, which matrix cores of gfx90a take for zero.
#[test]
fn weights_far_below_the_largest_count_where_subnormal_halves_are_zeros() {
    const TAIL: usize = 8192;
    let mut random = Random::new(24);
    let dim = 64;
    let scale = 1.0 / (dim as f32).sqrt();
    for sim in sims() {
        for (ty, name) in KV_TYPES.into_iter().filter(|(ty, _)| *ty != KvType::F32) {
            let layer = Layer { ty, ..layer(2, 1, dim, dim, 0, 0.0) };
            let lengths = [TAIL + 1];
            let above = 15.0 * std::f32::consts::LN_2 / scale;
            let (mut k, mut v) = (Vec::new(), Vec::new());
            for position in 0..=TAIL {
                let first = if position == 0 { above } else { 0.2 * random.normal() };
                k.extend((0..dim).map(|d| if d == 0 { first } else { 0.0 }));
                let value = if position == 0 { 0.0 } else { 1.0 };
                v.extend((0..dim).map(|_| value + 0.2 * random.normal() * value));
            }
            let cache = fill_with(sim, layer, &lengths, &k, &v, 0, &mut random);
            // Queries of the last tokens.
            let tokens: Vec<(usize, usize)> = (TAIL - 2..=TAIL).map(|p| (0, p)).collect();
            let q: Vec<f32> = (0..tokens.len() * 2 * dim).map(|i| if i % dim == 0 { 1.0 } else { 0.0 }).collect();
            let expected = cache.attend_all(&q, &tokens, scale);
            assert!(expected.iter().all(|e| (0.15..0.25).contains(e)), "a fifth of the weight");
            for splits in [1, 3] {
                let kernel = format!("attend_waves_{name}_64");
                let case = Case { sim, cache: &cache, kernel: &kernel, n: 8, splits, quantizes: false };
                let out = sim.flushing(|| case.attend(&q, &tokens, scale, None));
                assert_near(&out, &expected, &[0.2], 4e-3, &format!("wave {}, {kernel}, {splits} splits", sim.wave));
            }
            let kernel = format!("attend_core_{name}_64");
            let all = 0..tokens.len();
            let ranges = std::slice::from_ref(&all);
            let out = sim.flushing(|| attend_prompt(sim, &cache, &kernel, 64, &q, &tokens, ranges));
            assert_near(&out, &expected, &[0.2], 4e-3, &format!("wave {}, {kernel}", sim.wave));
        }
    }
}

#[test]
fn attention_of_prompts_is_right() {
    let mut random = Random::new(22);
    let layers = [
        layer(9, 3, 64, 64, 0, 0.0),
        layer(4, 1, 128, 128, 30, 0.0),
        layer(2, 2, 80, 48, 0, 3.0),
        layer(33, 1, 24, 40, 0, 0.0),
        layer(4, 2, 256, 256, 0, 0.0),
    ];
    for sim in sims() {
        for (i, layer) in layers.into_iter().enumerate() {
            for (ty, name) in KV_TYPES {
                let layer = Layer { ty, ..layer };
                let Layer { heads, k_dim, v_dim, .. } = layer;
                let lengths = [20, 130];
                let cache = fill(sim, layer, &lengths, &mut random);
                // The first sequence is new; the second had a prompt before.
                let tokens = tokens_of(&lengths, |s| [0, 75][s]);
                let scale = 1.0 / (k_dim as f32).sqrt();
                let q = random.normals(tokens.len() * heads * k_dim);
                let expected = cache.attend_all(&q, &tokens, scale);
                let n = [2, 4, 8].into_iter().find(|n| 32 * n >= v_dim).unwrap();
                let n = if i % 2 == 0 { n } else { 8 };
                // On matrix cores, queries and weights are f16.
                let core = [64, 128, 256].into_iter().find(|n| *n >= k_dim.max(v_dim)).unwrap();
                let plain = (format!("attend_prompt_{name}_{n}"), 32, 1e-5);
                let core = (format!("attend_core_{name}_{core}"), 64, 4e-3);
                for (kernel, tile, tolerance) in
                    [Some(plain), Some(core).filter(|_| ty != KvType::F32)].into_iter().flatten()
                {
                    let out = attend_prompt(sim, &cache, &kernel, tile, &q, &tokens, &[0..20, 20..75]);
                    let what = format!("wave {}, {kernel}, {layer:?}", sim.wave);
                    assert_near(&out, &expected, &[1.0], tolerance, &what);
                }
            }
        }
    }
}
