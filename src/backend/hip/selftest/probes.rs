//! The probes of a program: see the parent module. Those of single operations are written in `ops/`.

use crate::backend::hip::ops;
use crate::gguf::{Gguf, GgufWriter, TensorType};
use crate::program::{
    AttentionInfo, Buf, BufInfo, KvShape, LayerState, Op, Program, Rope, RowKind, Weight, WeightInfo,
};
use crate::simd::Isa;
use crate::{Error, ErrorKind, Result, quant};

/// The most columns of a layer's buffers, and of a single product; multiples of every block.
pub(crate) const LAYER_COLUMNS: usize = 256;
pub(crate) const PRODUCT_COLUMNS: usize = 512;
/// Outputs of a single product: whole tiles and a remainder.
pub(crate) const PRODUCT_ROWS: usize = 72;
/// The vocabulary of single operations.
const VOCAB: usize = 64;
/// The window of an attention that has one: shorter than the passes' positions, and no multiple of
/// any other size.
const WINDOW: usize = 37;

/// The numbers of tokens of the passes over a single operation; products have different kernels for
/// each. The first pass puts more than a page into the cache, so that attention, which reads it, is
/// also tested with several parts. The second pass of the same size may replay the graph that the
/// first one captured, with other inputs. A layer costs the CPU most and is tested with fewer
/// tokens.
const PASSES: [usize; 10] = [72, 1, 1, 2, 3, 5, 8, 12, 24, 40];
const LAYER_PASSES: [usize; 4] = [1, 1, 3, 20];

/// How much the device may differ, relative to the largest number. Activations that differ in the
/// last bit may round to different 8-bit numbers, matrix units may use half precision, and a layer
/// adds up such differences. Measured differences are 3e-3 for a layer and 1e-6 for all else. A
/// wrong kernel is off by far more.
const LAYER: f32 = 5e-2;
pub(crate) const ROUNDED: f32 = 1e-2;
pub(crate) const EXACT: f32 = 2e-3;

/// How many different blocks a weight has: a prime number for every size of block.
fn different_blocks(block_len: usize) -> usize {
    match block_len {
        256.. => 61,
        32.. => 509,
        _ => 16_381,
    }
}

/// A random weight to be generated.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Shape {
    ty: TensorType,
    rows: usize,
    columns: usize,
}

/// A small program whose weights have not been generated yet.
pub(crate) struct Probe {
    name: Name,
    program: Program,
    weights: Vec<Shape>,
    tolerance: f32,
}

enum Name {
    One(String),
    /// A product with weights of this type.
    Product(&'static str),
    Layer(usize),
}

impl Probe {
    /// The name of the test with `tokens` tokens.
    pub(super) fn name(&self, tokens: usize) -> String {
        match &self.name {
            Name::One(name) => name.clone(),
            Name::Layer(layer) => format!("layer {layer}"),
            Name::Product(ty) => format!("{} {ty}", if tokens > 8 { "matmul" } else { "matvec" }),
        }
    }

    pub(super) fn tolerance(&self) -> f32 {
        self.tolerance
    }

    /// The CPU code to compare with: the plain one. Layers compare with the fastest one, because
    /// their operations were compared with the plain one before.
    pub(super) fn isa(&self) -> Isa {
        match self.name {
            Name::Layer(_) => Isa::best(),
            _ => Isa::SCALAR,
        }
    }

    /// The tokens of each pass, in order.
    pub(super) fn passes(&self) -> &'static [usize] {
        let has_attention = self.program.ops.iter().any(|op| matches!(op, Op::Attention { .. }));
        match (&self.name, has_attention) {
            (Name::Layer(_), _) => &LAYER_PASSES,
            (_, true) => &PASSES,
            (_, false) => &PASSES[1..],
        }
    }

    /// A key that equal probes share.
    pub(super) fn key(&self) -> String {
        let Program { ops, buffers, ropes, states, .. } = &self.program;
        let columns: Vec<usize> = buffers.iter().map(|b| b.columns).collect();
        format!("{ops:?} {columns:?} {:?} {ropes:?} {states:?}", self.weights)
    }

    /// Generates the weights.
    pub(super) fn build(&self) -> Result<(Gguf, Program)> {
        let mut random = Random::new(self.weights.len() as u64);
        let mut writer = GgufWriter::new();
        for (i, &Shape { ty, rows, columns }) in self.weights.iter().enumerate() {
            // A vector is a norm's factor, around 1. A matrix of a product keeps the size of its
            // input.
            let (middle, scale) = if rows == 1 { (1.0, 0.5) } else { (0.0, (3.0 / columns as f32).sqrt()) };
            // Tables have rows of the size that norms and softmax usually get.
            let scale = if self.is_table(Weight(i)) { 2.0 } else { scale };
            // Repeats a prime number of blocks, because quantizing would take longer than
            // everything else.
            let blocks = (rows * columns / ty.block_len()).min(different_blocks(ty.block_len()));
            let values: Vec<f32> = (0..blocks * ty.block_len()).map(|_| middle + scale * random.float()).collect();
            let bytes = rows * columns / ty.block_len() * ty.block_bytes();
            let data: Vec<u8> = quant::quantize(ty, &values)?.into_iter().cycle().take(bytes).collect();
            writer = writer.tensor(format!("w{i}"), ty, &[columns as u64, rows as u64], data);
        }
        let gguf = Gguf::from_bytes(writer.to_bytes()?)?;
        let weight = |(i, shape): (usize, &Shape)| {
            let tensor = gguf.tensor(&format!("w{i}"));
            let tensor = tensor.ok_or_else(|| Error::new(ErrorKind::Device, "a weight is missing: a bug in wavelm"))?;
            Ok(WeightInfo { tensor: tensor.clone(), rows: shape.rows, columns: shape.columns })
        };
        let weights = self.weights.iter().enumerate().map(weight).collect::<Result<_>>()?;
        let program = Program { weights, ..self.program.clone() };
        Ok((gguf, program))
    }

    fn is_table(&self, weight: Weight) -> bool {
        self.program.ops.iter().any(|op| matches!(op, Op::Embed { table, .. } if *table == weight))
    }
}

/// All probes of a program, each once: single operations first, then layers.
///
/// # Errors
/// `OutOfMemory`.
pub(super) fn of(program: &Program) -> Result<Vec<Probe>> {
    let mut probes: Vec<Probe> = Vec::new();
    let mut add = |probe: Probe| {
        if probes.iter().all(|p| p.key() != probe.key()) {
            probes.push(probe);
        }
    };
    add(ops::first_probe());
    program.ops.iter().filter_map(|op| ops::probe(program, op)).for_each(&mut add);
    layers(program)?.into_iter().for_each(&mut add);
    Ok(probes)
}

/// Writes the program of a probe.
pub(crate) struct Sketch {
    program: Program,
    weights: Vec<Shape>,
}

/// A full cache.
fn paged(shape: KvShape) -> LayerState {
    LayerState::Paged { shape, window: None }
}

impl Sketch {
    pub(crate) fn new() -> Self {
        let program = Program {
            name: "self-test".to_owned(),
            buffers: Vec::new(),
            weights: Vec::new(),
            ropes: Vec::new(),
            // Passes have positions even if nothing is cached.
            states: vec![paged(KvShape { kv_heads: 1, head_dim: 16, value_dim: 16 })],
            ops: Vec::new(),
            vocab: VOCAB,
        };
        Self { program, weights: Vec::new() }
    }

    /// A buffer without content.
    pub(crate) fn buffer(&mut self, columns: usize, rows: RowKind) -> Buf {
        self.program.buffers.push(BufInfo { name: "b", columns, rows });
        Buf(self.program.buffers.len() - 1)
    }

    /// A random weight; a norm's factor if it is one row.
    pub(crate) fn weight(&mut self, ty: TensorType, rows: usize, columns: usize) -> Weight {
        self.weights.push(Shape { ty, rows, columns });
        Weight(self.weights.len() - 1)
    }

    /// A buffer of random rows.
    pub(crate) fn random(&mut self, ty: TensorType, columns: usize) -> Buf {
        let out = self.buffer(columns, RowKind::Tokens);
        let table = self.weight(ty, VOCAB, columns);
        self.op(Op::Embed { table, out });
        out
    }

    pub(crate) fn op(&mut self, op: Op) {
        self.program.ops.push(op);
    }

    pub(crate) fn rope(&mut self, rope: Rope) -> usize {
        self.program.ropes.push(rope);
        self.program.ropes.len() - 1
    }

    /// Gives the cache one layer of this shape.
    pub(crate) fn cache(&mut self, shape: KvShape) -> usize {
        self.program.states = vec![paged(shape)];
        0
    }

    /// The probe that compares buffer `x`.
    pub(crate) fn finish(self, name: impl Into<String>, x: Buf, tolerance: f32) -> Probe {
        self.probe(Name::One(name.into()), x, tolerance)
    }

    /// The same for a product with weights of this type.
    pub(crate) fn finish_product(self, ty: TensorType, x: Buf, tolerance: f32) -> Probe {
        self.probe(Name::Product(ops::type_name(ty)), x, tolerance)
    }

    fn probe(mut self, name: Name, x: Buf, tolerance: f32) -> Probe {
        self.op(Op::Logits { x });
        Probe { name, program: self.program, weights: self.weights, tolerance }
    }
}

/// The same attention with `kv_heads` key-value heads, and a window that has an effect.
pub(crate) fn fewer_heads(info: &AttentionInfo, kv_heads: usize) -> AttentionInfo {
    let group = info.heads / info.kv_heads.max(1);
    let kv_heads = kv_heads.min(info.kv_heads);
    let window = info.window.map(|window| window.min(WINDOW));
    AttentionInfo { heads: group * kv_heads, kv_heads, window, ..info.clone() }
}

/// A probe for each kind of layer. Each also has the operations before the first layer, and the
/// last layer's also those after it.
fn layers(program: &Program) -> Result<Vec<Probe>> {
    let cuts = program.layer_cuts()?;
    let Some(Some(first)) = cuts.first() else { return Ok(Vec::new()) };
    let mut probes: Vec<(String, Probe)> = Vec::new();
    for (layer, cut) in cuts.iter().enumerate() {
        let Some(cut) = cut else { continue };
        let end = cuts.get(layer + 1).copied().flatten();
        let (from, to) = (cut.op, end.map_or(program.ops.len(), |end| end.op));
        let ops = [program.ops.get(..first.op), program.ops.get(from..to)].map(Option::unwrap_or_default).concat();
        let part = program.part(&ops, Some(cut.buf))?;
        let types: Vec<TensorType> = part.weights.iter().map(|w| w.tensor.tensor_type()).collect();
        let kind = format!("{:?} {types:?} {:?}", part.ops, part.states);
        if probes.iter().all(|(other, _)| *other != kind) {
            probes.push((kind, shrunk(part, Name::Layer(layer))));
        }
    }
    Ok(probes.into_iter().map(|(_, probe)| probe).collect())
}

/// A program with the same operations over fewer columns.
fn shrunk(mut program: Program, name: Name) -> Probe {
    // The fewest heads whose columns are whole blocks of every type, if possible.
    let kv_heads = |info: &AttentionInfo| {
        let columns = |kv: usize| kv * (info.heads / info.kv_heads.max(1)) * info.value_dim;
        let whole = |kv: &usize| columns(*kv).is_multiple_of(LAYER_COLUMNS);
        (1..info.kv_heads).find(whole).unwrap_or(info.kv_heads)
    };
    let mut columns: Vec<Option<usize>> = vec![None; program.buffers.len()];
    for op in &mut program.ops {
        if let Op::Attention { info, layer, q, out } = op {
            *info = fewer_heads(info, kv_heads(info));
            if let Some(LayerState::Paged { shape, .. }) = program.states.get_mut(*layer) {
                shape.kv_heads = info.kv_heads;
            }
            set(&mut columns, *q, info.heads * info.head_dim);
            set(&mut columns, *out, info.heads * info.value_dim);
        }
    }
    // Buffers that share columns with an attention follow it; then all others are cut.
    for op in &program.ops {
        match *op {
            Op::StoreKv { layer, k, v } => {
                if let Some(LayerState::Paged { shape, .. }) = program.states.get(layer) {
                    set(&mut columns, k, shape.kv_heads * shape.head_dim);
                    set(&mut columns, v, shape.kv_heads * shape.value_dim);
                }
            }
            Op::Rows { x, out } => {
                if let Some(n) = columns.get(x.0).copied().flatten() {
                    set(&mut columns, out, n);
                }
            }
            _ => {}
        }
    }
    for (buffer, columns) in program.buffers.iter_mut().zip(columns) {
        buffer.columns = columns.unwrap_or(buffer.columns.min(LAYER_COLUMNS));
    }
    program.vocab = program.vocab.min(LAYER_COLUMNS);
    let of = |buf: Buf| program.columns(buf).unwrap_or(LAYER_COLUMNS);
    let mut weights: Vec<Shape> = program
        .weights
        .iter()
        .map(|w| Shape { ty: w.tensor.tensor_type(), rows: w.rows, columns: w.columns })
        .collect();
    let mut resize = |weight: Weight, rows, columns| {
        if let Some(shape) = weights.get_mut(weight.0) {
            (shape.rows, shape.columns) = (rows, columns);
        }
    };
    for op in &program.ops {
        match *op {
            Op::Embed { table, out } => resize(table, program.vocab, of(out)),
            Op::RmsNorm { x, weight, .. } => resize(weight, 1, of(x)),
            Op::MatMul { x, weight, bias, out } => {
                resize(weight, of(out), of(x));
                if let Some(bias) = bias {
                    resize(bias, 1, of(out));
                }
            }
            _ => {}
        }
    }
    program.weights.clear();
    Probe { name, program, weights, tolerance: LAYER }
}

fn set(columns: &mut [Option<usize>], buf: Buf, value: usize) {
    if let Some(place) = columns.get_mut(buf.0) {
        *place = Some(value);
    }
}

/// Random numbers (SplitMix64), the same in every run.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform from -1 to 1.
    pub(super) fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.bits() % n.max(1) as u64) as usize
    }
}
