//! What launches ask for ahead of those that read it (hip/ahead.h), and memory that starts as zeros.

use super::device::Device;
use super::memory::{DeviceBuffer, HostBuffer, Layout, Stream};
use super::pass::{GROUP_ROWS, MATVEC_ROWS};
use super::plan::{Product, Step};
use super::weights::{Weights, plane_ranges};
use crate::Result;
use crate::model::program::{Program, Weight};
use std::sync::Arc;

/// `off`, or how many MiB products and attention ask for: two numbers with a comma between them.
const VARIABLE: &str = "WAVELM_HIP_AHEAD";
/// Bytes that are asked for at once.
const LINE: u64 = 128;

/// How many bytes launches ask for.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Budget {
    /// A product, at its end: what memory gives while launches end and begin.
    product: u64,
    /// Attention, all the time.
    attention: u64,
}

impl Budget {
    /// So much of the cache that what is asked for is still there when it is read.
    fn new(cache: usize, asked: Option<&str>) -> Self {
        let cache = cache as u64;
        let usual = Self { product: cache / 8, attention: cache * 3 / 8 };
        let Some(asked) = asked else { return usual };
        let mut numbers = asked.split(',').map(|n| n.trim().parse::<u64>().ok());
        match (asked, numbers.next(), numbers.next(), numbers.next()) {
            ("off", ..) => Self { product: 0, attention: 0 },
            (_, Some(Some(product)), Some(Some(attention)), None) if product.max(attention) < 1 << 20 => {
                Self { product: product << 20, attention: attention << 20 }
            }
            _ => {
                log::warn!("{VARIABLE}={asked} is neither \"off\" nor two numbers of MiB");
                usual
            }
        }
    }
}

/// Ranges of device memory, each an address and a number of lines.
type Ranges = Vec<(u64, u64)>;

/// The memory of an executor that is written once.
pub(super) struct Ahead {
    memory: DeviceBuffer,
    /// For each step where its ranges are listed, if it has any.
    lists: Vec<Option<usize>>,
    /// Where the zeros start that attention counts with.
    counters: usize,
}

impl Ahead {
    pub(super) fn new(
        device: &Arc<Device>,
        stream: &Stream,
        program: &Program,
        steps: &[Step],
        weights: &Weights,
        counters: usize,
    ) -> Result<Self> {
        let asked = std::env::var(VARIABLE).ok();
        let budget = Budget::new(device.cache, asked.as_deref());
        let (mut layout, mut lists, mut words) = (Layout::default(), Vec::new(), Vec::new());
        for (i, step) in steps.iter().enumerate() {
            let ranges = ranges(program, weights, step, steps.get(i + 1..).unwrap_or_default(), budget)?;
            if ranges.is_empty() {
                lists.push(None);
                continue;
            }
            let total: u64 = ranges.iter().map(|(_, lines)| lines).sum();
            let list = [ranges.len() as u64 | blocks(program, step) << 32, total].into_iter();
            let list: Vec<u64> = list.chain(ranges.into_iter().flat_map(|(address, lines)| [address, lines])).collect();
            let offset = layout.part(size_of_val(list.as_slice()))?;
            lists.push(Some(offset));
            words.push((offset, list));
        }
        let counters = layout.part(counters * 4)?;
        let memory = DeviceBuffer::new(device, layout.bytes(), "lists of a pass")?;
        let mut host = HostBuffer::new(device, layout.bytes())?;
        let bytes = host.as_mut_slice();
        bytes.fill(0);
        for (offset, list) in words {
            let list: &[u8] = bytemuck::cast_slice(&list);
            if let Some(place) = bytes.get_mut(offset..offset + list.len()) {
                place.copy_from_slice(list);
            }
        }
        // SAFETY: it is waited for, in any case, before either is dropped or changed.
        let queued = unsafe { stream.upload(&memory, 0, &host, layout.bytes()) };
        queued.and(stream.wait())?;
        Ok(Self { memory, lists, counters })
    }

    /// The address of the list of step number `step`: null where it has none.
    pub(super) fn list(&self, step: usize) -> u64 {
        self.lists.get(step).copied().flatten().map_or(0, |offset| self.memory.start() + offset as u64)
    }

    /// The address of the counters.
    pub(super) fn counters(&self) -> u64 {
        self.memory.start() + self.counters as u64
    }
}

/// What `step` asks for: the weights of the next products, but not of those behind an attention, which asks by itself.
fn ranges(program: &Program, weights: &Weights, step: &Step, rest: &[Step], budget: Budget) -> Result<Ranges> {
    let (mut left, most) = match step {
        Step::MatMul { .. } | Step::Residual { .. } | Step::GatedMatMul { .. } => (budget.product, 1),
        Step::Attention { .. } => (budget.attention, usize::MAX),
        _ => return Ok(Vec::new()),
    };
    let products = rest.iter().take_while(|s| !matches!(s, Step::Attention { .. })).filter_map(|step| match step {
        Step::MatMul { products, .. } => Some((products.iter().collect(), false)),
        Step::Residual { product, .. } => Some((vec![product], false)),
        Step::GatedMatMul { gate, up, .. } => Some((vec![gate, up], true)),
        _ => None,
    });
    let mut ranges = Vec::new();
    for (products, together) in products.take(most) {
        let products: Vec<&Product> = products;
        for (i, product) in products.iter().enumerate() {
            let planes = planes(program, weights, product.weight)?;
            let size: u64 = planes.iter().map(|(_, bytes)| bytes).sum();
            // Rows of a gated unit's matrices are read side by side, other matrices one after the other.
            let part = size.min(if together { left / (products.len() - i) as u64 } else { left });
            left -= part;
            for (address, bytes) in planes {
                let lines = u128::from(bytes) * u128::from(part) / u128::from(size.max(1) * LINE);
                ranges.extend(u64::try_from(lines).ok().filter(|&lines| lines > 0).map(|lines| (address, lines)));
            }
        }
    }
    Ok(ranges)
}

/// The planes of a weight: their addresses and bytes.
fn planes(program: &Program, weights: &Weights, weight: Weight) -> Result<Ranges> {
    let info = program.weights.get(weight.0);
    let planes = info.map_or(Vec::new(), |w| plane_ranges(w.tensor.tensor_type(), w.rows.saturating_mul(w.columns)));
    let start = weights.address(weight.0)?;
    Ok(planes.into_iter().map(|(offset, bytes)| (start + offset as u64, bytes as u64)).collect())
}

/// The blocks of a product's launch with few rows of activations; attention needs no such number.
fn blocks(program: &Program, step: &Step) -> u64 {
    let rows = |product: &Product| program.weights.get(product.weight.0).map_or(0, |w| w.rows);
    let blocks = match step {
        Step::MatMul { products, .. } => products.iter().map(|p| rows(p).div_ceil(MATVEC_ROWS)).sum(),
        Step::Residual { product, .. } => rows(product).div_ceil(GROUP_ROWS),
        Step::GatedMatMul { gate, .. } => rows(gate).div_ceil(GROUP_ROWS),
        _ => 0,
    };
    blocks as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_follow_the_cache_or_the_user() {
        let (usual, none) = (Budget::new(48 << 20, None), Budget { product: 0, attention: 0 });
        assert_eq!(usual, Budget { product: 6 << 20, attention: 18 << 20 });
        assert_eq!(Budget::new(48 << 20, Some("off")), none);
        assert_eq!(Budget::new(48 << 20, Some("4, 12")), Budget { product: 4 << 20, attention: 12 << 20 });
        for wrong in ["", "4", "4,x", "1,2,3", "-1,2", "99999999999,1"] {
            assert_eq!(Budget::new(48 << 20, Some(wrong)), usual, "{wrong}");
        }
        assert_eq!(Budget::new(0, None), none);
    }
}
