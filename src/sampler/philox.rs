//! Philox4x32-10: random numbers as a function of a key and a counter (Salmon, Moraes, Dror and
//! Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011). There is no state to carry along:
//! the CPU and a GPU each compute the number of any step by themselves, and agree on it.

/// The ten rounds: 128 random bits for a counter under a key.
pub(crate) fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..10 {
        let a = u64::from(c0) * 0xd251_1f53;
        let b = u64::from(c2) * 0xcd9e_8d57;
        (c0, c1, c2, c3) = ((b >> 32) as u32 ^ c1 ^ k0, b as u32, (a >> 32) as u32 ^ c3 ^ k1, a as u32);
        k0 = k0.wrapping_add(0x9e37_79b9);
        k1 = k1.wrapping_add(0xbb67_ae85);
    }
    [c0, c1, c2, c3]
}

/// The random number of one step: 64 uniform bits, the first two words (low, high) of a block. The
/// block's key is the seed (low, high), and the low half of its counter is the step (low, high).
pub(crate) fn uniform(seed: u64, step: u64) -> u64 {
    let counter = [step as u32, (step >> 32) as u32, 0, 0];
    let [low, high, ..] = philox4x32_10(counter, [seed as u32, (seed >> 32) as u32]);
    u64::from(high) << 32 | u64::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The three vectors for philox4x32, 10 rounds, in the file kat_vectors of the authors' Random123 library.
    #[test]
    fn known_answers() {
        assert_eq!(philox4x32_10([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox4x32_10([!0; 4], [!0; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        assert_eq!(
            philox4x32_10([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]),
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
        );
    }

    #[test]
    fn the_number_of_a_step_is_made_of_the_first_two_words() {
        assert_eq!(uniform(0, 0), 0xe169_c58d_6627_e8d5);
        assert_ne!(uniform(1 << 32, 0), uniform(0, 0));
        assert_ne!(uniform(0, 1 << 32), uniform(0, 0));
    }
}
