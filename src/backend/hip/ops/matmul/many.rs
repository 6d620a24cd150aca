//! Products with many rows of activations: on matrix cores (hip/matmul/matmul_core.h), or by plain
//! arithmetic in tiles of 64 x 64 (hip/matmul/matmul.hip).

use super::Product;
use super::three::Three;
use crate::backend::hip::code::{Args, Kernel};
use crate::backend::hip::driver::DevicePtr;
use crate::backend::hip::ops::Finder;
use crate::backend::hip::pass::{Pass, Scratch, blocks, narrow};
use crate::program::{Buf, Program, Weight};
use crate::quant;
use crate::{Error, Result};

/// How products with many columns are computed.
pub(super) enum Many {
    /// By plain arithmetic, in tiles of 64 x 64.
    Tiles(Kernel),
    Core(Box<Core>),
}

/// Products on matrix cores.
pub(super) struct Core {
    /// Makes the f16 form of the columns.
    halve: Kernel,
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

/// Columns, weight rows and blocks per compute unit of matrix-core tiles, in the order of their
/// columns.
const TILES: [(usize, usize, usize); 4] = [(16, 64, 2), (32, 128, 2), (64, 128, 1), (128, 128, 2)];
/// The most blocks that share a tile.
const MOST_SPLITS: usize = 8;
/// Forces the tile with this number of columns, whatever the shape.
const TILE_VARIABLE: &str = "WAVELM_HIP_TILE";

/// The memory for products that read `x`: its f16 form, and that of blocks which share a tile.
pub(super) fn needs<'p>(
    program: &Program,
    x: Buf,
    products: impl IntoIterator<Item = &'p Product>,
    scratch: &mut Scratch,
) {
    if products.into_iter().any(|product| core_family(program, product.weight).is_some()) {
        scratch.halves(x);
    }
    let units = scratch.units();
    scratch.partials(TILES.iter().map(|(columns, rows, blocks)| columns * rows * blocks * units).max().unwrap_or(0));
    scratch.counters(units * 4);
}

impl Many {
    pub(super) fn find(find: &Finder<'_>, weight: Weight) -> Result<Self> {
        let family = core_family(find.program, weight).filter(|_| find.has_matrix_cores());
        let Some(family) = family else {
            let name = format!("matmul_{}", find.type_name(weight));
            return Ok(Self::Tiles(find.kernel("matmul", &name, 256)?));
        };
        let tile = |(columns, rows, blocks)| {
            let kernel = find.kernel(family, &format!("{family}_{columns}"), 256)?;
            Ok::<_, Error>(Tile { columns, rows, blocks, kernel })
        };
        let [small, medium, large, largest] = TILES.map(tile);
        let chosen = std::env::var(TILE_VARIABLE).ok().filter(|v| !v.is_empty());
        let known = |v: &String| TILES.iter().map(|(n, ..)| *n).find(|n| n.to_string() == *v);
        let forced = chosen.as_ref().and_then(known);
        if let (Some(chosen), None) = (&chosen, forced) {
            log::warn!("{TILE_VARIABLE}={chosen} names no tile: there are 16, 32, 64 and 128");
        }
        Ok(Self::Core(Box::new(Core {
            halve: find.kernel("halve", "halve_rows", 1024)?,
            tiles: [small?, medium?, large?, largest?],
            forced,
        })))
    }

    /// Launches up to three products whose weights have one type.
    pub(super) fn launch(&self, pass: &Pass<'_>, x: Buf, products: &[Product]) -> Result<()> {
        match self {
            Self::Tiles(kernel) => products.iter().try_for_each(|product| {
                let grid = [blocks(pass.info(product.weight)?.rows, 64)?, blocks(pass.rows(x)?, 64)?, 1];
                pass.launch(kernel, grid, product.args(pass, x)?)
            }),
            Self::Core(core) => core.launch(pass, x, products),
        }
    }
}

impl Core {
    fn launch(&self, pass: &Pass<'_>, x: Buf, products: &[Product]) -> Result<()> {
        let (three, count) = (Three::new(pass, products)?, pass.rows(x)?);
        let (kernel, [across, down, splits]) =
            self.choose(&three.rows, three.columns, count, pass.device().units as usize);
        let (halves, scales) = self.halves(pass, x)?;
        let args = three.weights(Args::default()).ptr(halves).ptr(scales);
        let args = three.shape(three.results(args))?.u32(narrow(count)?);
        let args = args.u32(narrow(splits)?).ptr(pass.partials()).ptr(pass.counters());
        products.iter().for_each(|product| pass.overwritten(product.out));
        pass.launch(kernel, [narrow(across)?, narrow(down)?, narrow(splits)?], args)
    }

    /// The f16 form of a buffer, computed if it is stale: numbers, and scales of the rows.
    fn halves(&self, pass: &Pass<'_>, x: Buf) -> Result<(DevicePtr, DevicePtr)> {
        let (numbers, scales) = pass.halves(x)?;
        if pass.halved.get() != Some(x) {
            let args = Args::default().ptr(pass.float(x)?).ptr(numbers).ptr(scales).u32(narrow(pass.columns(x)?)?);
            pass.launch(&self.halve, [narrow(pass.rows(x)?)?, 1, 1], args)?;
            pass.halved.set(Some(x));
        }
        Ok((numbers, scales))
    }

    /// The kernel for `count` columns and matrices of `rows` rows and `columns` columns, and its
    /// grid.
    fn choose(&self, rows: &[usize], columns: usize, count: usize, units: usize) -> (&Kernel, [usize; 3]) {
        let [small, medium, large, largest] = &self.tiles;
        let tile = match self.forced.unwrap_or_else(|| choose_tile(rows.iter().sum(), count, units)) {
            16 => small,
            32 => medium,
            64 => large,
            _ => largest,
        };
        let [across, down] = [rows.iter().map(|rows| rows.div_ceil(tile.rows)).sum(), count.div_ceil(tile.columns)];
        (&tile.kernel, [across, down, splits(across * down, columns, units * tile.blocks)])
    }
}

/// How many blocks share each of `tiles` tiles: as many as run at once (`blocks`), but only so many
/// that each has some work.
fn splits(tiles: usize, columns: usize, blocks: usize) -> usize {
    const LEAST_COLUMNS: usize = 512;
    (blocks / tiles.max(1)).clamp(1, (columns / LEAST_COLUMNS).clamp(1, MOST_SPLITS))
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

/// The family of kernels that multiply with a weight on matrix cores, if there is one for its type
/// and shape.
fn core_family(program: &Program, weight: Weight) -> Option<&'static str> {
    let info = program.weights.get(weight.0).filter(|w| w.columns.is_multiple_of(32))?;
    quant::core_family(info.tensor.tensor_type())
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
}
