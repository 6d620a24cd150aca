//! How kernels find the cache: the arguments that attention and storing have in common.

use crate::Result;
use crate::backend::hip::code::Args;
use crate::backend::hip::driver::DevicePtr;
use crate::backend::hip::pass::{Pass, bug, narrow};

/// One layer of the cache, for the tokens of a pass.
#[derive(Clone, Copy)]
pub(super) struct Cache {
    /// The memory of the pages of the layer's group.
    pages: DevicePtr,
    /// The group's page tables of the sequences, with `table_len` entries each.
    table: DevicePtr,
    table_len: usize,
    /// For each token the row of its page table, and its position.
    token_tables: DevicePtr,
    positions: DevicePtr,
    /// Where the layer lies in a page, and the size of a page.
    offset: usize,
    page_bytes: usize,
}

impl Cache {
    pub(super) fn new(pass: &Pass<'_>, layer: usize) -> Result<Self> {
        let place = pass.place(layer)?;
        let lacks = || bug("a group of layers has no pages");
        let pages = pass.pages.get(place.group).ok_or_else(lacks)?;
        Ok(Self {
            pages: pages.start(),
            table: pass.inputs.tables.get(place.group).copied().ok_or_else(lacks)?,
            table_len: pass.inputs.table_len,
            token_tables: pass.inputs.token_tables,
            positions: pass.inputs.positions,
            offset: place.offset,
            page_bytes: pages.page_bytes(),
        })
    }

    /// The same without the first `tokens` tokens.
    pub(super) fn after(self, tokens: usize) -> Self {
        let bytes = tokens as u64 * 4;
        Self { token_tables: self.token_tables + bytes, positions: self.positions + bytes, ..self }
    }

    /// Adds the addresses.
    pub(super) fn addresses(&self, args: Args) -> Args {
        args.ptr(self.pages).ptr(self.table).ptr(self.token_tables).ptr(self.positions)
    }

    /// Adds the length of a page table.
    pub(super) fn table_len(&self, args: Args) -> Result<Args> {
        Ok(args.u32(narrow(self.table_len)?))
    }

    /// Adds where the layer lies. These are the last arguments.
    pub(super) fn place(&self, args: Args) -> Args {
        args.u64(self.offset).u64(self.page_bytes)
    }
}
