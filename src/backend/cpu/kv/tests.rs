use super::*;
use crate::simd::Isa;

const TYPES: [KvType; 3] = [KvType::F32, KvType::F16, KvType::Q8_0];

impl KvLayout {
    /// Offsets in the layer of number `d` of the key, or else the value, of a position within the
    /// page, and of its scale.
    pub(crate) fn place(&self, key: bool, head: usize, slot: usize, d: usize) -> (usize, usize) {
        let rows = if key { &self.keys } else { &self.values };
        let size = rows.row_bytes / rows.padded;
        if key {
            let lane = slot % KEY_GROUP;
            let scale = d / Q8_BLOCK * PAGE_LEN + slot;
            (rows.row(head, slot - lane) + (d * KEY_GROUP + lane) * size, rows.scales(head) + scale * 2)
        } else {
            let scale = slot * rows.blocks + d / Q8_BLOCK;
            (rows.row(head, slot) + d * size, rows.scales(head) + scale * 2)
        }
    }
}

#[test]
fn elements_and_scales_do_not_overlap() {
    for kv_type in TYPES {
        for (heads, k_dim, v_dim) in [(1, 1, 1), (3, 64, 64), (2, 80, 72), (1, 192, 128)] {
            let layout = KvLayout::for_layer(kv_type, heads, k_dim, v_dim).unwrap();
            let mut used = vec![false; layout.bytes()];
            for (key, rows) in [(true, &layout.keys), (false, &layout.values)] {
                let size = rows.row_bytes / rows.padded;
                for head in 0..heads {
                    assert!(rows.row(head, 0).is_multiple_of(64));
                    for (slot, d) in (0..PAGE_LEN).flat_map(|slot| (0..rows.padded).map(move |d| (slot, d))) {
                        let (element, scale) = layout.place(key, head, slot, d);
                        let scale = if rows.blocks > 0 && d % Q8_BLOCK == 0 { scale..scale + 2 } else { 0..0 };
                        for byte in (element..element + size).chain(scale) {
                            assert!(!std::mem::replace(&mut used[byte], true), "{kv_type:?} {byte}");
                        }
                    }
                }
            }
            assert!(layout.bytes().is_multiple_of(64));
        }
    }
}

#[test]
fn bytes_for_common_shapes() {
    let bytes = |kv_type| KvLayout::for_layer(kv_type, 3, 64, 64).unwrap().bytes();
    assert_eq!(bytes(KvType::F32), 2 * 3 * 64 * 64 * 4);
    assert_eq!(bytes(KvType::F16), 2 * 3 * 64 * 64 * 2);
    assert_eq!(bytes(KvType::Q8_0), 2 * 3 * 64 * 64 * 34 / 32);
}

#[test]
fn impossible_shapes_are_refused() {
    for (heads, k_dim, v_dim) in [(0, 64, 64), (1, 0, 64), (1, 64, 0), (usize::MAX, 64, 64), (1, usize::MAX, 1)] {
        for kv_type in TYPES {
            assert!(KvLayout::for_layer(kv_type, heads, k_dim, v_dim).is_err());
        }
    }
}

/// Stored rows read back within the rounding of the type, at their place, and nothing else changes.
#[test]
fn stored_rows_read_back() {
    const OFFSET: usize = 64;
    // From the middle of one group of keys to the middle of another, past several whole ones.
    const ROWS: usize = 100;
    let value = |row: usize, i: usize| ((row * 31 + i * 7) % 100) as f32 / 25.0 - 2.0;
    for isa in Isa::available() {
        for kv_type in TYPES {
            let layout = KvLayout::for_layer(kv_type, 2, 72, 40).unwrap();
            let mut memory = vec![vec![0xa5a5_a5a5_a5a5_a5a5_u64; (OFFSET + layout.bytes()) / 8]; 3];
            let pages: Vec<*mut u8> = memory.iter_mut().map(|page| page.as_mut_ptr().cast()).collect();
            let span = Span { first_row: 1, rows: ROWS, first_pos: 50, pages: &pages };
            let k: Vec<f32> = (0..(ROWS + 1) * 144).map(|i| value(i / 144, i % 144)).collect();
            let v: Vec<f32> = (0..(ROWS + 1) * 80).map(|i| value(i / 80, i % 80)).collect();
            let spans = [span];
            let plan = StorePlan::new(&layout, &spans).unwrap();
            assert_eq!(plan.items(), 7);
            for item in 0..plan.items() {
                // SAFETY: the pages belong to this test.
                unsafe { plan.run_item(isa, OFFSET, item, &k, &v) };
            }
            for (key, rows, source) in [(true, &layout.keys, &k), (false, &layout.values, &v)] {
                for position in 0..192 {
                    let layer: &[u8] = &bytemuck::cast_slice(&memory[position / 64])[OFFSET..];
                    for (head, d) in (0..2).flat_map(|head| (0..rows.padded).map(move |d| (head, d))) {
                        let (at, scale) = layout.place(key, head, position % 64, d);
                        if !(50..50 + ROWS).contains(&position) {
                            assert!(layer[at..][..rows.row_bytes / rows.padded].iter().all(|&b| b == 0xa5));
                            assert!(rows.blocks == 0 || layer[scale..][..2] == [0xa5; 2]);
                            continue;
                        }
                        let f16 = |at: usize| half::f16::from_le_bytes([layer[at], layer[at + 1]]).to_f32();
                        let got = match kv_type {
                            KvType::F32 => f32::from_le_bytes(layer[at..][..4].try_into().unwrap()),
                            KvType::F16 => f16(at),
                            KvType::Q8_0 => f32::from(layer[at] as i8) * f16(scale),
                        };
                        let index = ((position - 49) * 2 + head) * rows.dim + d;
                        let expected = if d < rows.dim { source[index] } else { 0.0 };
                        let tolerance = match kv_type {
                            KvType::F32 => 0.0,
                            KvType::F16 => expected.abs() / 2048.0,
                            KvType::Q8_0 => 2.0 / 127.0 * 0.51,
                        };
                        assert!((got - expected).abs() <= tolerance, "{isa:?} {kv_type:?}: {got} for {expected}");
                    }
                    assert!(memory[position / 64][..OFFSET / 8].iter().all(|&w| w == 0xa5a5_a5a5_a5a5_a5a5));
                }
            }
        }
    }
}

/// Numbers that the type cannot hold are stored as the nearest that it can.
#[test]
fn extreme_numbers_stay_finite() {
    for isa in Isa::available() {
        for kv_type in [KvType::F16, KvType::Q8_0] {
            let layout = KvLayout::for_layer(kv_type, 1, 32, 32).unwrap();
            let mut memory = vec![0_u64; layout.bytes() / 8];
            let pages = [memory.as_mut_ptr().cast()];
            let spans = [Span { first_row: 0, rows: 1, first_pos: 0, pages: &pages }];
            let mut k = [1e-30_f32; 32];
            k[3] = f32::MAX;
            k[4] = f32::NEG_INFINITY;
            let plan = StorePlan::new(&layout, &spans).unwrap();
            // SAFETY: the page belongs to this test.
            unsafe { plan.run_item(isa, 0, 0, &k, &[1e-30; 32]) };
            let bytes: &[u8] = bytemuck::cast_slice(&memory);
            let f16 = |at: usize| half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32();
            let (large, scale) = layout.place(true, 0, 0, 3);
            let (value, value_scale) = layout.place(false, 0, 0, 0);
            let (large, small) = match kv_type {
                KvType::Q8_0 => (f32::from(bytes[large] as i8) * f16(scale), f16(value_scale)),
                _ => (f16(large), f16(value)),
            };
            assert!(large.is_finite() && large >= 65504.0, "{isa:?} {kv_type:?} {large}");
            assert_eq!(small, 0.0);
        }
    }
}
