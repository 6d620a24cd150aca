//! A profile's data on a kernel.

use std::time::Duration;

/// How long a GPU kernel took in a [profile](crate::Model::profile).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KernelTime {
    /// The kernel's name in hip/: `matvec_glu_q4_k_1`.
    pub kernel: String,
    /// How often it was launched.
    pub launches: u64,
    /// The time of all launches on the device, without the cost of timing a launch.
    pub time: Duration,
}

impl KernelTime {
    /// The kind of work: the kernel's name without number formats, columns and other variants. For
    /// `matvec_glu_q4_k_1` it is `matvec_glu`.
    pub fn family(&self) -> &str {
        let is_variant = |part: &str| part.contains(|c: char| c.is_ascii_digit()) || part == "silu" || part == "gelu";
        let parts = self.kernel.match_indices('_').map(|(at, _)| at);
        let end = parts.clone().zip(parts.skip(1).chain([self.kernel.len()]));
        let variant = end.into_iter().find(|&(from, to)| self.kernel.get(from + 1..to).is_some_and(is_variant));
        variant.and_then(|(from, _)| self.kernel.get(..from)).unwrap_or(&self.kernel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_a_name_without_its_variants() {
        let names = [
            ("matvec_q4_k_1", "matvec"),
            ("matvec_three_q4_k_q6_k_2", "matvec_three"),
            ("matvec_residual_q8_0_1", "matvec_residual"),
            ("matvec_glu_bf16_4", "matvec_glu"),
            ("matmul_core_q5_1_128", "matmul_core"),
            ("attend_decode_f16_4", "attend_decode"),
            ("sample_choose", "sample_choose"),
            ("store_kv_q8_0", "store_kv"),
            ("glu_silu", "glu"),
            ("quantize_q8", "quantize"),
            ("rms_norm", "rms_norm"),
            ("rope", "rope"),
            ("", ""),
        ];
        for (kernel, family) in names {
            let kernel = KernelTime { kernel: kernel.to_owned(), launches: 1, time: Duration::ZERO };
            assert_eq!(kernel.family(), family);
        }
    }
}
