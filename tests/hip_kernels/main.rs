//! Every GPU kernel, built for the host and run by the simulator in hip/sim, against plain references: on random and
//! odd shapes, with waves of 32 and 64 lanes. Skipped, with the reason printed, where there is no C++ compiler.

mod attention;
mod common;
mod rows;
mod sampling;
mod sim;
#[path = "../common/simulator.rs"]
mod simulator;
mod weights;

use sim::{Buffer, sims};

#[test]
fn what_is_wrong_with_a_launch_is_said() {
    for sim in sims() {
        let error = sim.try_launch("no_such_kernel", [1, 1, 1], &[]).unwrap_err();
        assert!(error.contains("no_such_kernel"), "{error}");
        let x = Buffer::new(&[1.0_f32; 32]);
        let error = sim.try_launch("quantize_q8", [1, 1, 1], args![&x]).unwrap_err();
        assert!(error.contains("takes 4 arguments, not 1"), "{error}");
        assert!(sim.kernels().len() > 100);
    }
}

#[test]
fn the_simulator_has_barriers_and_waves() {
    for sim in sims() {
        let out = Buffer::unset::<u32>(256);
        sim.launch("selftest_mirror", [2, 1, 1], args![&out]);
        let expected: Vec<u32> = (0..256).map(|i| 2 * (127 - i % 128)).collect();
        assert_eq!(out.read::<u32>(), expected);
    }
}

#[test]
fn what_would_hang_a_gpu_is_an_error() {
    for sim in sims() {
        sim.launch("selftest_barrier", [1, 1, 1], args![128_usize]);
        sim.launch("selftest_barrier", [1, 1, 1], args![0_usize]);
        let error = sim.try_launch("selftest_barrier", [3, 1, 1], args![100_usize]).unwrap_err();
        assert!(
            error.contains("selftest_barrier, block (0, 0, 0): deadlock, with 100 threads at a barrier"),
            "{error}"
        );
        let out = Buffer::unset::<u32>(128);
        let error = sim.try_launch("selftest_shuffle", [1, 1, 1], args![7_usize, &out]).unwrap_err();
        assert!(error.contains("deadlock") && error.contains("in a wave operation"), "{error}");
        // The simulator is as before.
        sim.launch("selftest_shuffle", [1, 1, 1], args![64_usize, &out]);
        assert_eq!(out.read::<u32>(), vec![sim.wave; 128]);
    }
}
