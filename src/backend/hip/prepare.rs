//! What a pass needs and what is known before the first: the kernels of each step, and where buffers lie.

use super::device::Device;
use super::memory::Layout;
use super::modules::{Kernel, Modules};
use super::plan::{Plan, Product, Step};
use super::{MOST_OUTPUTS, MOST_TOKENS};
use crate::backend::KvType;
use crate::model::program::{Activation, AttentionInfo, Buf, Program, RowKind, Weight};
use crate::{Error, Result};

/// Columns that the kernels for few columns come for.
pub(super) const MATVEC_COLUMNS: [usize; 4] = [1, 2, 4, 8];
/// Parts of the positions that attention is cut into at most, for at most so many tokens.
pub(super) const MOST_SPLITS: usize = 32;
pub(super) const MOST_SPLIT_TOKENS: usize = 16;
/// Queries in a tile of prompt attention.
const TILE: usize = 32;

/// The kernels of a step.
pub(super) enum Kernels {
    One(Kernel),
    /// Products with the same activations: all of them for each of [`MATVEC_COLUMNS`], and each for more.
    MatMul {
        few: Vec<Kernel>,
        many: Vec<Kernel>,
    },
    /// A gated unit: as a whole, and as the gate's product, the other one and what is made of them.
    GatedMatMul {
        few: Vec<Kernel>,
        many: [Kernel; 2],
        glu: Kernel,
    },
    Attention(Attention),
}

/// How attention of a shape is launched.
pub(super) struct Attention {
    pub(super) decode: Kernel,
    pub(super) combine: Kernel,
    /// For results that are needed as integers and do not come from `combine`.
    pub(super) quantize: Kernel,
    /// For many queries, where heads are narrow enough.
    pub(super) prompt: Option<Kernel>,
    /// Query heads that share a key-value head.
    pub(super) group: usize,
    /// Heads of the group that a block of `decode` takes, and of `prompt`.
    pub(super) heads_per_block: usize,
    pub(super) heads_in_tile: usize,
}

impl Attention {
    /// Tokens in a tile of `prompt`.
    pub(super) fn tile_tokens(&self) -> usize {
        TILE / self.heads_in_tile
    }
}

/// Finds the kernels of all steps, loading what is not loaded.
pub(super) fn kernels(
    program: &Program,
    plan: &Plan,
    kv_type: KvType,
    device: &Device,
    modules: &Modules,
) -> Result<Vec<Kernels>> {
    let finder = Finder { program, kv_type, wave: device.wave, modules };
    plan.steps.iter().map(|step| finder.step(step)).collect()
}

struct Finder<'a> {
    program: &'a Program,
    kv_type: KvType,
    wave: u32,
    modules: &'a Modules,
}

impl Finder<'_> {
    fn step(&self, step: &Step) -> Result<Kernels> {
        let one = |family, name: &str, threads| Ok(Kernels::One(self.modules.kernel(family, name, threads)?));
        match step {
            Step::Embed { table, .. } => one("dequant", &format!("dequant_rows_{}", self.type_name(*table)), 128),
            Step::Scale { .. } => one("elementwise", "scale", 256),
            Step::Norm { .. } => one("norm", "rms_norm", 1024),
            Step::HeadNorm { .. } => one("norm", "head_norm", 4 * self.wave),
            Step::Quantize { .. } => one("quantize", "quantize_q8", 256),
            Step::MatMul { products, .. } => {
                let first = products.first().map_or(String::new(), |p| self.type_name(p.weight));
                let name = match products.last().map(|p| self.type_name(p.weight)) {
                    _ if products.len() == 1 => first,
                    Some(last) if last != first => format!("three_{first}_{last}"),
                    _ => format!("three_{first}"),
                };
                let few = self.few(&name, 4)?;
                Ok(Kernels::MatMul { few, many: products.iter().map(|p| self.many(p)).collect::<Result<_>>()? })
            }
            Step::GatedMatMul { gate, up, act, .. } => Ok(Kernels::GatedMatMul {
                few: self.few(&format!("glu_{}", self.type_name(gate.weight)), 8)?,
                many: [self.many(gate)?, self.many(up)?],
                glu: self.glu(*act)?,
            }),
            Step::Rope { .. } => one("rope", "rope", 64),
            Step::StoreKv { .. } => one("rope", &format!("store_kv_{}", self.kv_name()?), 64),
            Step::Attention { info, .. } => Ok(Kernels::Attention(self.attention(info)?)),
            Step::Glu { act, .. } => Ok(Kernels::One(self.glu(*act)?)),
            Step::Add { .. } => one("elementwise", "add", 256),
            Step::Softcap { .. } => one("elementwise", "softcap", 256),
            Step::Gather { .. } => one("elementwise", "gather_rows", 256),
        }
    }

    /// `matvec_<name>` for each number of columns, in blocks of so many waves.
    fn few(&self, name: &str, waves: u32) -> Result<Vec<Kernel>> {
        let kernel = |n: &usize| self.modules.kernel("matvec", &format!("matvec_{name}_{n}"), waves * self.wave);
        MATVEC_COLUMNS.iter().map(kernel).collect()
    }

    fn many(&self, product: &Product) -> Result<Kernel> {
        self.modules.kernel("matmul", &format!("matmul_{}", self.type_name(product.weight)), 256)
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
        let heads_per_block = if group > 4 {
            8
        } else if group > 1 {
            4
        } else {
            1
        };
        let wide = [2, 4, 8].into_iter().find(|n| info.value_dim <= 32 * n);
        let prompt =
            wide.map(|n| self.modules.kernel("attention", &format!("attend_prompt_{kv}_{n}"), 256)).transpose()?;
        let decode = format!("attend_decode_{kv}_{heads_per_block}");
        Ok(Attention {
            decode: self.modules.kernel("attention", &decode, 128)?,
            combine: self.modules.kernel("attention", "attend_combine", 128)?,
            quantize: self.modules.kernel("quantize", "quantize_q8", 256)?,
            prompt,
            group,
            heads_per_block,
            heads_in_tile: group.clamp(1, TILE),
        })
    }

    fn type_name(&self, weight: Weight) -> String {
        let info = self.program.weights.get(weight.0);
        info.map_or(String::new(), |w| w.tensor.tensor_type().name().to_lowercase())
    }

    fn kv_name(&self) -> Result<&'static str> {
        match self.kv_type {
            KvType::F32 => Ok("f32"),
            KvType::F16 => Ok("f16"),
            KvType::Q8_0 => Ok("q8_0"),
        }
    }
}

/// Where the buffers of the largest pass lie in their memory.
pub(super) struct Buffers {
    floats: Vec<usize>,
    /// For each buffer whose int8 form is used: the numbers, and the words of their groups.
    int8: Vec<Option<(usize, usize)>>,
    /// What parts of the positions find, before they are combined.
    pub(super) partials: usize,
    pub(super) bytes: usize,
}

impl Buffers {
    /// The logits' buffer is none of them: each pass brings its own.
    pub(super) fn new(program: &Program, plan: &Plan) -> Result<Self> {
        let mut layout = Layout::default();
        let (mut floats, mut int8) = (Vec::new(), Vec::new());
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
        }
        let partial = |step: &Step| match step {
            Step::Attention { info, .. } => info.heads * (info.value_dim + 2),
            _ => 0,
        };
        let partial = plan.steps.iter().map(partial).max().unwrap_or(0);
        let partials = layout.part(partial.saturating_mul(MOST_SPLITS * MOST_SPLIT_TOKENS * 4))?;
        Ok(Self { floats, int8, partials, bytes: layout.bytes() })
    }

    pub(super) fn float(&self, buf: Buf) -> Option<usize> {
        self.floats.get(buf.0).copied()
    }

    pub(super) fn int8(&self, buf: Buf) -> Option<(usize, usize)> {
        self.int8.get(buf.0).copied().flatten()
    }
}
