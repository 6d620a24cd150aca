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
    }
    Ok(())
}
