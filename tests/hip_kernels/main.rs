//! Every GPU kernel, built for the host and run by the simulator in hip/sim, against plain references: on random and
//! odd shapes, with waves of 32 and 64 lanes. Skipped, with the reason printed, where there is no C++ compiler.

mod attention;
mod common;
mod rows;
mod sampling;
mod sim;
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
        assert!(sim.kernels().len() > 50);
    }
}
