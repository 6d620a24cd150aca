//! Formats agree with what is known of them, and round trips lose little.

use super::*;

fn all_types() -> impl Iterator<Item = TensorType> {
    (0..64).filter_map(TensorType::from_id)
}

/// Pseudorandom numbers (splitmix64).
fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Roughly normal numbers of variance 1: each is the sum of twelve uniform ones.
fn normal(seed: &mut u64) -> f32 {
    (0..12).map(|_| (random(seed) >> 40) as f32 / (1 << 24) as f32).sum::<f32>() - 6.0
}

/// The root mean squared error of a round trip, relative to that of replacing all values by 0.
fn relative_error(ty: TensorType, values: &[f32]) -> f64 {
    let mut out = vec![f32::NAN; values.len()];
    dequantize(ty, &quantize(ty, values).unwrap(), &mut out).unwrap();
    let sum = |terms: &mut dyn Iterator<Item = f32>| terms.map(|v| f64::from(v).powi(2)).sum::<f64>();
    (sum(&mut values.iter().zip(&out).map(|(v, o)| v - o)) / sum(&mut values.iter().copied())).sqrt()
}

#[test]
fn supported_types_are_those_that_work() {
    for ty in all_types() {
        let mut out = vec![f32::NAN; ty.block_len()];
        let values = vec![0.0; ty.block_len()];
        let (from, to) = (dequantize(ty, &vec![0; ty.block_bytes()], &mut out), quantize(ty, &values));
        if is_supported(ty) {
            assert_eq!((from.is_ok(), out), (true, values.clone()), "{ty:?}");
            assert_eq!(to.unwrap().len(), ty.block_bytes());
        } else {
            for error in [from.unwrap_err(), to.unwrap_err()] {
                assert_eq!(error.kind(), crate::ErrorKind::Unsupported);
                assert!(error.to_string().contains(&format!("{ty:?} are not supported")), "{error}");
            }
        }
    }
    assert!(supported().all(is_supported) && supported().count() >= 13);
}

#[test]
fn sizes_must_agree() {
    for ty in supported() {
        let (len, bytes) = (ty.block_len(), ty.block_bytes());
        let error = |data: usize, out: usize| dequantize(ty, &vec![0; data], &mut vec![0.0; out]).unwrap_err();
        for error in [error(2 * bytes, len), error(bytes, 2 * len), error(0, len), error(bytes + 1, len)] {
            assert_eq!(error.kind(), crate::ErrorKind::InvalidInput);
        }
        dequantize(ty, &[], &mut []).unwrap();
        assert!(quantize(ty, &[]).unwrap().is_empty());
        if len > 1 {
            assert_eq!(error(bytes, len - 1).kind(), crate::ErrorKind::InvalidInput);
            assert_eq!(quantize(ty, &vec![0.0; len + 1]).unwrap_err().kind(), crate::ErrorKind::InvalidInput);
        }
    }
}

#[test]
fn round_trips_are_close() {
    let mut seed = 1;
    let values: Vec<f32> = (0..64 * 256).map(|_| normal(&mut seed) * 0.02).collect();
    for ty in supported() {
        let bound = match ty {
            TensorType::F32 => 0.0,
            TensorType::F16 => 0.0003,
            TensorType::BF16 => 0.002,
            _ => facts(ty).unwrap().round_trip_error,
        };
        let error = relative_error(ty, &values);
        assert!(error <= bound, "{ty:?}: the relative error is {error}");
    }
}

#[test]
fn round_trips_hold_at_any_magnitude_and_offset() {
    let mut seed = 2;
    for ty in supported() {
        for magnitude in [1e-2, 1.0, 1e4] {
            for offset in [0.0, 0.9, -0.9] {
                let values: Vec<f32> = (0..1024).map(|_| magnitude * (0.3 * normal(&mut seed) + offset)).collect();
                let error = relative_error(ty, &values);
                assert!(error < 0.3, "{ty:?}: the relative error is {error} at {magnitude} with offset {offset}");
            }
        }
    }
}

#[test]
fn any_bytes_and_any_values_are_accepted() {
    let mut seed = 3;
    for ty in supported() {
        let (len, bytes) = (4 * ty.block_len(), 4 * ty.block_bytes());
        let mut out = vec![0.0; len];
        for _ in 0..100 {
            let data: Vec<u8> = (0..bytes).map(|_| random(&mut seed) as u8).collect();
            dequantize(ty, &data, &mut out).unwrap();
            let values: Vec<f32> = (0..len).map(|_| f32::from_bits(random(&mut seed) as u32)).collect();
            assert_eq!(quantize(ty, &values).unwrap().len(), bytes);
        }
        dequantize(ty, &vec![0xff; bytes], &mut out).unwrap();
        assert!(out.iter().all(|v| v.is_nan()), "{ty:?}: NaN scales give NaN weights");
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, f32::from_bits(1)] {
            assert_eq!(quantize(ty, &vec![value; len]).unwrap().len(), bytes);
        }
    }
}

#[test]
fn every_format_is_complete() {
    let mut names = Vec::new();
    for ty in supported() {
        assert_eq!(kernel_name(ty), Some(&*ty.name().to_lowercase()), "{ty:?}");
        names.push(kernel_name(ty));
        let family = kernel_name(ty).filter(|_| ty != TensorType::F32).map(|name| format!("matmul_core_{name}"));
        assert_eq!(core_family(ty), family.as_deref());
        let mut bytes: Vec<usize> = planes(ty).unwrap().iter().flat_map(|&(at, len)| at..at + len).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..ty.block_bytes()).collect::<Vec<_>>(), "{ty:?}: planes are a permutation of the block");
        assert!(planes(ty).unwrap().windows(2).all(|two| two[0] != two[1]));
    }
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), supported().count(), "two formats have the same name");
    for &ty in QUANTIZED {
        let facts = facts(ty).unwrap();
        assert!(ty.is_quantized() && formats::MAX_BLOCK_BYTES >= ty.block_bytes(), "{ty:?}");
        assert!((0.0..0.5).contains(&facts.round_trip_error), "{ty:?}");
        // What interleaved rows can be read as: whole words, and two bytes at one end.
        if facts.unpacks {
            match facts.half_at {
                None => assert_eq!(ty.block_bytes() % 4, 0, "{ty:?}"),
                Some(at) => assert!(ty.block_bytes() % 4 == 2 && [0, ty.block_bytes() - 2].contains(&at), "{ty:?}"),
            }
        }
    }
}
