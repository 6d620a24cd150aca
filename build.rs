//! Nothing needs to be built in advance on the CPU. The GPU code objects of hip/ will be embedded here.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}
