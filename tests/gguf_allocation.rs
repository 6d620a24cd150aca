//! What a file claims must not decide how much memory is taken. This is a test binary of its own, as it counts every
//! allocation of the process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use wavelm::gguf::{Gguf, GgufWriter, TensorType};

struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`, which is the same.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `System`, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes allocated by parsing `bytes`, whether or not they were freed again, and whether the file was accepted.
fn allocated_by_parsing(bytes: Vec<u8>) -> (usize, bool) {
    let before = ALLOCATED.load(Ordering::Relaxed);
    let outcome = Gguf::from_bytes(bytes);
    (ALLOCATED.load(Ordering::Relaxed) - before, outcome.is_ok())
}

fn header(tensors: u64, entries: u64) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(tensors.to_le_bytes());
    bytes.extend(entries.to_le_bytes());
    bytes
}

fn entry(bytes: &mut Vec<u8>, key: &str, words: &[u32], count: u64) {
    bytes.extend((key.len() as u64).to_le_bytes());
    bytes.extend(key.as_bytes());
    bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    bytes.extend(count.to_le_bytes());
}

/// All in one test, so that no other thread allocates meanwhile.
#[test]
fn memory_is_bounded_by_what_the_file_holds() {
    let mut claims = vec![header(1 << 40, 0), header(0, 1 << 40), header(u64::MAX, u64::MAX)];
    for count in [1 << 40, 1 << 33, u64::MAX / 16, u64::MAX] {
        for ty in 0..=12 {
            let mut array = header(0, 1);
            entry(&mut array, "key", &[9, ty], count);
            claims.push(array);
            let mut nested = header(0, 1);
            entry(&mut nested, "key", &[9, 9], 1);
            nested.extend(ty.to_le_bytes());
            nested.extend(count.to_le_bytes());
            claims.push(nested);
        }
        let mut string = header(0, 1);
        entry(&mut string, "key", &[8], count);
        claims.push(string);
        let mut key = header(0, 1);
        key.extend(count.to_le_bytes());
        claims.push(key);
        let mut tensor = header(1, 0);
        entry(&mut tensor, "tensor", &[1], count);
        tensor.extend([0; 12]);
        claims.push(tensor);
    }
    for mut claim in claims {
        claim.resize(100, 0);
        let (allocated, accepted) = allocated_by_parsing(claim.clone());
        assert!(!accepted, "{claim:?}");
        assert!(allocated < 4096, "{allocated} bytes were allocated for {claim:?}");
    }

    // Files that are nothing but the smallest possible things: what they turn into is larger, but not by much.
    let small_entries = (0..10_000u32).fold(GgufWriter::new(), |w, i| w.metadata(format!("{i:x}"), true));
    let small_tensors =
        (0..10_000u32).fold(GgufWriter::new(), |w, i| w.tensor(format!("{i:x}"), TensorType::I8, &[1], [0]));
    let mut nested = header(0, 1);
    entry(&mut nested, "key", &[9, 9], 10_000);
    nested.extend([0; 12 * 10_000]);
    for bytes in [small_entries.to_bytes().unwrap(), small_tensors.to_bytes().unwrap(), nested] {
        let len = bytes.len();
        let (allocated, accepted) = allocated_by_parsing(bytes);
        assert!(accepted);
        assert!(allocated < 12 * len, "{allocated} bytes were allocated for {len}");
    }
}
