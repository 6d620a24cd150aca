//! Elementwise kernels.
use super::isa::Isa;
pub(crate) fn scale(_: Isa, x: &mut [f32], by: f32) {
    x.iter_mut().for_each(|v| *v *= by)
}
pub(crate) fn rms_norm(_: Isa, x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) {
    let ss: f32 = x.iter().map(|v| v * v).sum::<f32>() / x.len() as f32;
    let s = 1.0 / (ss + eps).sqrt();
    for i in 0..x.len() {
        out[i] = x[i] * s * w[i];
    }
}
pub(crate) fn rms_norm_in_place(i: Isa, x: &mut [f32], w: &[f32], eps: f32) {
    let c = x.to_vec();
    rms_norm(i, &c, w, eps, x)
}
pub(crate) fn silu_glu(_: Isa, g: &mut [f32], u: &[f32]) {
    for (g, u) in g.iter_mut().zip(u) {
        *g = *g / (1.0 + (-*g).exp()) * u
    }
}
pub(crate) fn gelu_glu(_: Isa, g: &mut [f32], u: &[f32]) {
    for (g, u) in g.iter_mut().zip(u) {
        let x = *g;
        *g = 0.5 * x * (1.0 + (0.79788456 * (x + 0.044715 * x * x * x)).tanh()) * u
    }
}
pub(crate) fn add(_: Isa, x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y
    }
}
pub(crate) fn softcap(_: Isa, x: &mut [f32], c: f32) {
    for x in x {
        *x = c * (*x / c).tanh()
    }
}
pub(crate) fn rope_norm(_: Isa, h: &mut [f32], cos: &[f32], sin: &[f32]) {
    for i in 0..cos.len() {
        let (a, b) = (h[2 * i], h[2 * i + 1]);
        h[2 * i] = a * cos[i] - b * sin[i];
        h[2 * i + 1] = a * sin[i] + b * cos[i];
    }
}
pub(crate) fn rope_neox(_: Isa, h: &mut [f32], cos: &[f32], sin: &[f32]) {
    let n = cos.len();
    for i in 0..n {
        let (a, b) = (h[i], h[i + n]);
        h[i] = a * cos[i] - b * sin[i];
        h[i + n] = a * sin[i] + b * cos[i];
    }
}
