//! Preparations before the first pass: the kernels of each step, and the layout of buffers.

use super::device::Device;
use super::memory::Layout;
use super::modules::{Kernel, Modules};
use super::objects::has_matrix_cores;
use super::plan::{Fusing, Plan, Product, Step};
use super::{MOST_OUTPUTS, MOST_TOKENS};
use crate::backend::KvType;
use crate::program::{Activation, AttentionInfo, Buf, Program, RowKind, Weight};
use crate::{Error, Result, memory, quant};

/// The numbers of columns for which there are kernels for few columns.
pub(super) const MATVEC_COLUMNS: [usize; 4] = [1, 2, 4, 8];
/// The most parts into which attention cuts the positions, and the most tokens for which it does
/// so.
pub(super) const MOST_SPLITS: usize = 64;
pub(super) const MOST_SPLIT_TOKENS: usize = 16;
/// Queries in a tile of prompt attention, without and with matrix cores.
const QUERIES: usize = 32;
const CORE_QUERIES: usize = 64;

/// The kernels of a step.
pub(super) enum Kernels {
    One(Kernel),
    /// Products with the same activations: one kernel for all of them for each of
    /// [`MATVEC_COLUMNS`], and kernels for single products with more columns.
    MatMul {
        few: Vec<Kernel>,
        many: Vec<Many>,
    },
    /// A product that is added, and the norm after it: one kernel for both for each of
    /// [`MATVEC_COLUMNS`], and separate kernels.
    Residual {
        few: Vec<Kernel>,
        many: Many,
        norm: Halving,
    },
    /// A gated unit: as a whole, and as the products and their combination.
    GatedMatMul {
        few: Vec<Kernel>,
        many: Many,
        glu: Halving,
    },
    Attention(Attention),
}

/// The kernel that makes the activations of products.
pub(super) enum Halving {
    /// Makes them in f32 and int8.
    Not(Kernel),
    /// Makes them only in f16, as products on matrix cores need them.
    Halves(Kernel),
}

/// How products with many columns are computed.
pub(super) enum Many {
    /// By plain arithmetic, in tiles of 64 x 64.
    Tiles(Kernel),
    Core(Box<Core>),
}

/// Products on matrix cores.
pub(super) struct Core {
    /// Makes the f16 form of the columns.
    pub(super) halve: Kernel,
    tiles: [Tile; 4],
    /// The only tile that is used, if the user chose one.
    forced: Option<usize>,
}

struct Tile {
    columns: usize,
    rows: usize,
    /// How many blocks a compute unit holds.
    blocks: usize,
    kernel: Kernel,
}

/// Threads in a block of the kernels that add a product with `n` columns, the same as in
/// hip/matvec.hip: as many as there are registers for. GCN, and CDNA before gfx90a, have half as
/// many registers for waves of 64.
fn residual_threads(arch: &str, n: usize) -> u32 {
    let few = arch.starts_with("gfx9") && !["gfx90a", "gfx94", "gfx95"].iter().any(|a| arch.starts_with(a));
    match (few, n) {
        (false, 1) => 1024,
        (false, _) | (true, 1) => 512,
        (true, _) => 256,
    }
}

/// Columns, weight rows and blocks per compute unit of matrix-core tiles, in the order of their
/// columns.
const TILES: [(usize, usize, usize); 4] = [(16, 64, 2), (32, 128, 2), (64, 128, 1), (128, 128, 2)];
/// The most blocks that share a tile.
const MOST_CORE_SPLITS: usize = 8;
/// Forces the tile with this number of columns, whatever the shape.
const TILE_VARIABLE: &str = "WAVELM_HIP_TILE";

impl Core {
    /// The kernel for `count` columns and matrices of `rows` rows and `columns` columns, and its
    /// grid.
    pub(super) fn choose(&self, rows: &[usize], columns: usize, count: usize, units: u32) -> (&Kernel, [usize; 3]) {
        let [small, medium, large, largest] = &self.tiles;
        let tile = match self.forced.unwrap_or_else(|| choose_tile(rows.iter().sum(), count, units as usize)) {
            16 => small,
            32 => medium,
            64 => large,
            _ => largest,
        };
        let [across, down] = [rows.iter().map(|rows| rows.div_ceil(tile.rows)).sum(), count.div_ceil(tile.columns)];
        (&tile.kernel, [across, down, splits(across * down, columns, units as usize * tile.blocks)])
    }
}

/// How many blocks share each of `tiles` tiles: as many as run at once (`blocks`), but only so many
/// that each has some work.
fn splits(tiles: usize, columns: usize, blocks: usize) -> usize {
    const LEAST_COLUMNS: usize = 512;
    (blocks / tiles.max(1)).clamp(1, (columns / LEAST_COLUMNS).clamp(1, MOST_CORE_SPLITS))
}

/// The columns of the tile for a shape: enough for all columns. For more than 64 columns it is the
/// largest tile, unless that leaves a quarter of the compute units without work.
fn choose_tile(rows: usize, count: usize, units: usize) -> usize {
    match count {
        ..=16 => 16,
        17..=32 => 32,
        33..=64 => 64,
        _ if rows.div_ceil(128) * count.div_ceil(128) * 4 < units * 3 => 64,
        _ => 128,
    }
}

/// The kernels for attention of one shape.
pub(super) struct Attention {
    /// For few queries: one kernel with a block for each head, and one with a block for several
    /// heads of a group.
    pub(super) one_head: Kernel,
    pub(super) heads: Heads,
    /// Stores keys and values where the decode kernel does not.
    pub(super) store: Kernel,
    /// Quantizes results that are needed as integers and do not come from the decode kernel.
    pub(super) quantize: Kernel,
    /// For many queries, where heads are narrow enough.
    pub(super) prompt: Option<Kernel>,
    /// Query heads that share a key-value head.
    pub(super) group: usize,
    /// How many heads of the group a block of `prompt` takes.
    pub(super) heads_in_tile: usize,
    /// Tokens in a tile of `prompt`.
    pub(super) tile_tokens: usize,
}

/// Attention of few queries. Each block takes several heads.
pub(super) struct Heads {
    pub(super) kernel: Kernel,
    /// How many heads of a group a block takes.
    pub(super) per_block: usize,
    /// How many blocks a compute unit holds.
    pub(super) blocks: usize,
}

/// Whether to leave norms to the products around them: `fused`, `apart`, or, by default, depending
/// on their width.
const NORMS_VARIABLE: &str = "WAVELM_HIP_NORMS";
/// Whether a gated unit is one launch: `fused`, otherwise `apart`.
const GATES_VARIABLE: &str = "WAVELM_HIP_GATES";

/// Lowers a program for a device.
pub(super) fn plan(program: &Program, device: &Device) -> Result<Plan> {
    let asked = std::env::var(NORMS_VARIABLE).unwrap_or_default();
    // A product that prepares the norm after it has a block for every 32 rows. Too few blocks leave
    // compute units idle. On an H100 (132 units) 64 blocks gain a tenth, 48 nothing.
    let fills = |columns: usize| columns / 32 * 5 >= device.units as usize * 2;
    let norms = |columns: usize| asked == "fused" || (asked != "apart" && fills(columns));
    let gates = std::env::var(GATES_VARIABLE).map_or(true, |asked| asked != "apart");
    Plan::new(program, &Fusing { norms: &norms, gates })
}

/// Finds the kernels of all steps, and loads those that are not loaded yet.
pub(super) fn kernels(
    program: &Program,
    plan: &Plan,
    kv_type: KvType,
    device: &Device,
    modules: &Modules,
) -> Result<Vec<Kernels>> {
    let finder = Finder { program, kv_type, device, modules };
    memory::try_collected(plan.steps.iter().map(|step| finder.step(step)), "the kernels of the model")
}

struct Finder<'a> {
    program: &'a Program,
    kv_type: KvType,
    device: &'a Device,
    modules: &'a Modules,
}

impl Finder<'_> {
    fn step(&self, step: &Step) -> Result<Kernels> {
        let one = |family, name: &str, threads| Ok(Kernels::One(self.modules.kernel(family, name, threads)?));
        match step {
            Step::Embed { table, .. } => one("dequant", &format!("dequant_rows_{}", self.type_name(*table)), 128),
            Step::Scale { .. } => one("elementwise", "scale", 256),
            Step::Norm { .. } => one("norm", "rms_norm", 1024),
            Step::HeadNorm { .. } => one("norm", "head_norm", 4 * self.device.wave),
            Step::Quantize { .. } => one("quantize", "quantize_q8", 256),
            Step::MatMul { products, .. } => {
                let first = products.first().map_or(String::new(), |p| self.type_name(p.weight));
                let name = match products.last().map(|p| self.type_name(p.weight)) {
                    _ if products.len() == 1 => first,
                    Some(last) if last != first => format!("three_{first}_{last}"),
                    _ => format!("three_{first}"),
                };
                let few = self.few(&name, 4 * self.device.wave)?;
                Ok(Kernels::MatMul { few, many: products.iter().map(|p| self.many(p)).collect::<Result<_>>()? })
            }
            Step::Residual { product, .. } => {
                let name = |n: &usize| format!("matvec_residual_{}_{n}", self.type_name(product.weight));
                let threads = |n| residual_threads(&self.device.arch, n);
                let few = |n: &usize| self.modules.kernel("matvec", &name(n), threads(*n));
                Ok(Kernels::Residual {
                    few: MATVEC_COLUMNS.iter().map(few).collect::<Result<_>>()?,
                    many: self.many(product)?,
                    // Only products with quantized weights read the result.
                    norm: match has_matrix_cores(&self.device.arch) {
                        true => Halving::Halves(self.modules.kernel("halve", "halve_norm", 1024)?),
                        false => Halving::Not(self.modules.kernel("norm", "rms_norm", 1024)?),
                    },
                })
            }
            Step::GatedMatMul { gate, act, only_multiplied, .. } => Ok(Kernels::GatedMatMul {
                few: self.few(&format!("glu_{}", self.type_name(gate.weight)), 256)?,
                many: self.many(gate)?,
                glu: match (has_matrix_cores(&self.device.arch) && *only_multiplied, act) {
                    (true, Activation::Silu) => Halving::Halves(self.modules.kernel("halve", "halve_silu", 1024)?),
                    (true, Activation::Gelu) => Halving::Halves(self.modules.kernel("halve", "halve_gelu", 1024)?),
                    (false, _) => Halving::Not(self.glu(*act)?),
                },
            }),
            Step::Rope { .. } => one("rope", "rope", 64),
            Step::StoreKv { .. } => Ok(Kernels::One(self.store_kv()?)),
            Step::Attention { info, .. } => Ok(Kernels::Attention(self.attention(info)?)),
            Step::Glu { act, .. } => Ok(Kernels::One(self.glu(*act)?)),
            Step::Add { .. } => one("elementwise", "add", 256),
            Step::Softcap { .. } => one("elementwise", "softcap", 256),
            Step::Gather { .. } => one("elementwise", "gather_rows", 256),
        }
    }

    /// `matvec_<name>` for each number of columns, in blocks of `threads` threads.
    fn few(&self, name: &str, threads: u32) -> Result<Vec<Kernel>> {
        let kernel = |n: &usize| self.modules.kernel("matvec", &format!("matvec_{name}_{n}"), threads);
        MATVEC_COLUMNS.iter().map(kernel).collect()
    }

    fn many(&self, product: &Product) -> Result<Many> {
        let (weight, ty) = (product.weight, self.type_name(product.weight));
        let family = core_family(self.program, weight).filter(|_| has_matrix_cores(&self.device.arch));
        let Some(family) = family else {
            return Ok(Many::Tiles(self.modules.kernel("matmul", &format!("matmul_{ty}"), 256)?));
        };
        let tile = |(columns, rows, blocks)| {
            let kernel = self.modules.kernel(family, &format!("{family}_{columns}"), 256)?;
            Ok::<_, Error>(Tile { columns, rows, blocks, kernel })
        };
        let [small, medium, large, largest] = TILES.map(tile);
        let chosen = std::env::var(TILE_VARIABLE).ok().filter(|v| !v.is_empty());
        let known = |v: &String| TILES.iter().map(|(n, ..)| *n).find(|n| n.to_string() == *v);
        let forced = chosen.as_ref().and_then(known);
        if let (Some(chosen), None) = (&chosen, forced) {
            log::warn!("{TILE_VARIABLE}={chosen} names no tile: there are 16, 32, 64 and 128");
        }
        Ok(Many::Core(Box::new(Core {
            halve: self.modules.kernel("halve", "halve_rows", 1024)?,
            tiles: [small?, medium?, large?, largest?],
            forced,
        })))
    }

    fn glu(&self, act: Activation) -> Result<Kernel> {
        let name = match act {
            Activation::Silu => "glu_silu",
            Activation::Gelu => "glu_gelu",
        };
        self.modules.kernel("elementwise", name, 256)
    }

    fn attention(&self, info: &AttentionInfo) -> Result<Attention> {
        const WIDEST: usize = 512;
        if info.head_dim > WIDEST || info.value_dim > WIDEST || info.kv_heads == 0 {
            return Err(Error::unsupported(format!(
                "attention heads of {} and {} columns: no GPU kernel takes more than {WIDEST}",
                info.head_dim, info.value_dim
            )));
        }
        let (group, kv) = (info.heads / info.kv_heads, self.kv_name()?);
        let core = [64, 128, 256].into_iter().find(|n| info.head_dim.max(info.value_dim) <= *n);
        // A cache of f32 may hold values that f16 cannot.
        let core = core.filter(|_| self.kv_type != KvType::F32 && has_matrix_cores(&self.device.arch));
        let wide = [2, 4, 8].into_iter().find(|n| info.value_dim <= 32 * n);
        let (tile, prompt) = match (core, wide) {
            (Some(n), _) => {
                let name = format!("attend_core_{kv}_{n}");
                (CORE_QUERIES, Some(self.modules.kernel("attention_core", &name, 4 * self.device.wave)?))
            }
            (None, Some(n)) => {
                (QUERIES, Some(self.modules.kernel("attention_prompt", &format!("attend_prompt_{kv}_{n}"), 256)?))
            }
            (None, None) => (QUERIES, None),
        };
        let heads_in_tile = group.clamp(1, tile);
        let decode = |n| self.modules.kernel("attention", &format!("attend_decode_{kv}_{n}"), 256);
        // Matrix cores have heads as rows, so they need several heads, and a cache whose values fit
        // f16.
        let waves = core.filter(|n| *n <= 128 && group > 1);
        let heads = match (waves, group) {
            (Some(n), _) => {
                let kernel = self.modules.kernel("attention_waves", &format!("attend_waves_{kv}_{n}"), 256)?;
                Heads { kernel, per_block: 8, blocks: 1 }
            }
            (None, 5..) => Heads { kernel: decode(8)?, per_block: 8, blocks: 2 },
            (None, 2..) => Heads { kernel: decode(4)?, per_block: 4, blocks: 2 },
            (None, _) => Heads { kernel: decode(1)?, per_block: 1, blocks: 2 },
        };
        Ok(Attention {
            one_head: decode(1)?,
            heads,
            store: self.store_kv()?,
            quantize: self.modules.kernel("quantize", "quantize_q8", 256)?,
            prompt,
            group,
            heads_in_tile,
            tile_tokens: tile / heads_in_tile,
        })
    }

    fn store_kv(&self) -> Result<Kernel> {
        self.modules.kernel("rope", &format!("store_kv_{}", self.kv_name()?), 64)
    }

    fn type_name(&self, weight: Weight) -> String {
        let info = self.program.weights.get(weight.0);
        info.and_then(|w| quant::kernel_name(w.tensor.tensor_type())).unwrap_or_default().to_owned()
    }

    fn kv_name(&self) -> Result<&'static str> {
        match self.kv_type {
            KvType::F32 => Ok("f32"),
            KvType::F16 => Ok("f16"),
            KvType::Q8_0 => Ok("q8_0"),
        }
    }
}

/// The family of kernels that multiply with a weight on matrix cores, if there is one for its type
/// and shape.
fn core_family(program: &Program, weight: Weight) -> Option<&'static str> {
    let info = program.weights.get(weight.0).filter(|w| w.columns.is_multiple_of(32))?;
    quant::core_family(info.tensor.tensor_type())
}

/// The offsets of the largest pass's buffers in their memory.
pub(super) struct Buffers {
    floats: Vec<usize>,
    /// For each buffer whose int8 form is used: the numbers, and the words of their groups.
    int8: Vec<Option<(usize, usize)>>,
    /// For each buffer whose f16 form is used: the numbers, and the scales of the rows.
    halves: Vec<Option<(usize, usize)>>,
    /// For each buffer that a [`Step::Residual`] writes: the sums of squares of a deferred norm.
    squares: Vec<Option<usize>>,
    /// Partial results of blocks that share a result.
    pub(super) partials: usize,
    /// Counters of these blocks.
    pub(super) counters: usize,
    pub(super) bytes: usize,
}

impl Buffers {
    /// The logits' buffer is not among them: each pass brings its own.
    pub(super) fn new(program: &Program, plan: &Plan, device: &Device) -> Result<Self> {
        let mut layout = Layout::default();
        let (mut floats, mut int8, mut halves, mut squares) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let halved = |buf| {
            let is_core = |product: &Product| core_family(program, product.weight).is_some();
            let multiplies = |step: &Step| match step {
                Step::MatMul { x, products, .. } => *x == buf && products.iter().any(is_core),
                Step::Residual { x, product, .. } => *x == buf && is_core(product),
                Step::GatedMatMul { x, gate, up, .. } => *x == buf && (is_core(gate) || is_core(up)),
                _ => false,
            };
            has_matrix_cores(&device.arch) && plan.steps.iter().any(multiplies)
        };
        for (i, buffer) in program.buffers.iter().enumerate() {
            let rows = match buffer.rows {
                RowKind::Tokens => MOST_TOKENS,
                RowKind::Outputs => MOST_OUTPUTS,
            };
            let elements = buffer.columns.saturating_mul(rows);
            let bytes = if plan.logits == Buf(i) { 0 } else { elements.saturating_mul(4) };
            floats.push(layout.part(bytes)?);
            int8.push(match plan.quantized.get(i) {
                Some(true) => Some((layout.part(elements)?, layout.part(elements / 32 * 8)?)),
                _ => None,
            });
            halves.push(match halved(Buf(i)) {
                true => Some((layout.part(elements.saturating_mul(2))?, layout.part(rows * 4)?)),
                false => None,
            });
        }
        let most = MATVEC_COLUMNS.into_iter().max().unwrap_or(0);
        for (i, buffer) in program.buffers.iter().enumerate() {
            let writes = |step: &Step| matches!(step, Step::Residual { out, .. } if *out == Buf(i));
            squares.push(match plan.steps.iter().any(writes) {
                true => Some(layout.part(most.saturating_mul(buffer.columns / 32 * 4))?),
                false => None,
            });
        }
        let partial = |step: &Step| match step {
            Step::Attention { info, .. } => info.heads * (info.value_dim.next_multiple_of(4) + 4),
            _ => 0,
        };
        let partial = plan.steps.iter().map(partial).max().unwrap_or(0);
        // For attention, or for blocks that share tiles of a product.
        let units = device.units as usize;
        let tiles = TILES.iter().map(|(columns, rows, blocks)| columns * rows * blocks * units).max().unwrap_or(0);
        let partial = partial.saturating_mul(MOST_SPLITS * MOST_SPLIT_TOKENS).max(tiles);
        let partials = layout.part(partial.saturating_mul(4))?;
        let counted = |step: &Step| match step {
            Step::Attention { info, .. } => MOST_SPLIT_TOKENS * info.heads,
            _ => 0,
        };
        let counters = plan.steps.iter().map(counted).max().unwrap_or(0).max(units * 4);
        Ok(Self { floats, int8, halves, squares, partials, counters, bytes: layout.bytes() })
    }

    pub(super) fn float(&self, buf: Buf) -> Option<usize> {
        self.floats.get(buf.0).copied()
    }

    pub(super) fn int8(&self, buf: Buf) -> Option<(usize, usize)> {
        self.int8.get(buf.0).copied().flatten()
    }

    pub(super) fn squares(&self, buf: Buf) -> Option<usize> {
        self.squares.get(buf.0).copied().flatten()
    }

    pub(super) fn halves(&self, buf: Buf) -> Option<(usize, usize)> {
        self.halves.get(buf.0).copied().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_suit_the_columns_and_fill_the_device() {
        let columns = |rows, count| choose_tile(rows, count, 132);
        assert_eq!([9, 16, 17, 32, 33, 64].map(|count| columns(4096, count)), [16, 16, 32, 32, 64, 64]);
        assert_eq!([1024, 2048, 4096, 28672].map(|rows| columns(rows, 512)), [64, 64, 128, 128]);
        assert_eq!(columns(28672, 65), 128);
        assert_eq!([1, 32, 128, 132, 133, 4000].map(|tiles| splits(tiles, 4096, 264)), [8, 8, 2, 2, 1, 1]);
        assert_eq!([64, 1024, 1536].map(|columns| splits(32, columns, 264)), [1, 2, 3]);
    }

    /// The threads for which a kernel was compiled: in an object's notes, a number of two bytes
    /// before the kernel's name.
    fn compiled_threads(code: &[u8], kernel: &str) -> Option<u32> {
        let name = [b"\xa5.name", &[0xa0 | kernel.len() as u8][..], kernel.as_bytes()].concat();
        let at = code.windows(name.len()).position(|window| window == name)?;
        match code.get(at.checked_sub(3)?..at)? {
            [0xcd, high, low] => Some(u32::from(*high) << 8 | u32::from(*low)),
            _ => None,
        }
    }

    #[test]
    fn blocks_have_as_many_threads_as_they_were_compiled_for() {
        const ARCHITECTURES: [&str; 12] = [
            "gfx900", "gfx906", "gfx908", "gfx90a", "gfx942", "gfx1010", "gfx1030", "gfx1031", "gfx1100", "gfx1102",
            "gfx1151", "gfx1201",
        ];
        for arch in ARCHITECTURES {
            // A build without kernels has none.
            let found = super::super::objects::find("matvec", arch).ok().and_then(|mut all| all.next());
            let Some(Ok(object)) = found else { continue };
            for n in MATVEC_COLUMNS {
                let kernel = format!("matvec_residual_q4_k_{n}");
                let compiled = compiled_threads(&object.code, &kernel);
                assert_eq!(compiled, Some(residual_threads(arch, n)), "{kernel} for {arch}");
            }
        }
    }
}
