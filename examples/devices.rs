//! Lists the devices of this machine, and why one cannot be used.

mod common;

use common::cli::{Cli, Outcome, run};
use std::io::{self, Write};
use std::process::ExitCode;

const HELP: &str = "\
Lists the devices of this machine that could run a model, best first, and why one cannot be used.

Usage: devices

  -h, --help  this text
";

fn main() -> ExitCode {
    run(&[HELP], devices)
}

fn devices(cli: &mut Cli) -> Outcome {
    if cli.next()?.is_some() {
        return Err(cli.unknown());
    }
    let mut out = io::stdout().lock();
    for device in wavelm::devices() {
        let state = match &device.unusable {
            None => "usable".to_owned(),
            Some(reason) => format!("not usable: {reason}"),
        };
        writeln!(out, "{:<6}  {}  ({state})", device.device.to_string(), device.name)?;
        if let Some(gpu) = &device.gpu {
            let version = gpu.version.as_deref().unwrap_or("unknown version");
            let memory = gpu.memory as f64 / f64::from(1 << 30);
            let kind = if gpu.integrated { "integrated" } else { "discrete" };
            writeln!(out, "        {}, {version}", gpu.library)?;
            writeln!(
                out,
                "        {kind}, {} compute units, waves of {}, {memory:.1} GiB",
                gpu.compute_units, gpu.wave_size
            )?;
            writeln!(out, "        kernels: {}", gpu.kernels.as_deref().unwrap_or("none"))?;
        }
    }
    if let Some(reason) = wavelm::why_no_gpu() {
        writeln!(out, "no GPU: {reason}")?;
    }
    Ok(())
}
