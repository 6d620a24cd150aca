//! Archives of objects, as src/backend/hip/code/objects.rs unpacks them.

use lzma_rust2::{EncodeMode, LzmaOptions, LzmaReader, LzmaWriter, MfType};
use std::io::{Read, Write};

/// Packs the objects of neighbouring targets, one after the other, into one LZMA stream.
pub fn pack(data: &[u8], is_text: bool) -> Result<Vec<u8>, String> {
    // Machine code is words of four bytes.
    let (lc, lp, pb) = if is_text { (3, 0, 0) } else { (1, 2, 2) };
    // A window over all that there is, so that each object finds its neighbours.
    let dict_size = data.len().next_power_of_two().max(1 << 16);
    let options = LzmaOptions {
        dict_size: u32::try_from(dict_size).map_err(|_| "an archive of 4 GiB cannot be packed")?,
        lc,
        lp,
        pb,
        mode: EncodeMode::Normal,
        nice_len: LzmaOptions::NICE_LEN_MAX,
        mf: MfType::Bt4,
        depth_limit: 512,
        preset_dict: None,
    };
    let write = || {
        let mut writer = LzmaWriter::new_use_header(Vec::new(), &options, None)?;
        writer.write_all(data)?;
        writer.finish()
    };
    write().map_err(|e: std::io::Error| format!("objects cannot be packed: {e}"))
}

/// The contents of an archive.
pub fn unpack(archive: &[u8]) -> Result<Vec<u8>, String> {
    let mut data = Vec::new();
    let read = LzmaReader::new_mem_limit(archive, u32::MAX, None).and_then(|mut reader| reader.read_to_end(&mut data));
    read.map_err(|e| format!("an archive cannot be unpacked: {e}"))?;
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_unpacked() {
        let text = "first, ".repeat(300) + &"second, ".repeat(300);
        for (data, is_text) in [(text.as_bytes(), true), (text.as_bytes(), false), (b"".as_slice(), false)] {
            let archive = pack(data, is_text).unwrap();
            assert_eq!(unpack(&archive).unwrap(), data);
            assert!(archive.len() < 100, "{}", archive.len());
            // The library bounds memory by the window in the head.
            assert_eq!(archive[1..5], (1u32 << 16).to_le_bytes());
        }
        assert!(unpack(b"no archive").is_err());
    }
}
