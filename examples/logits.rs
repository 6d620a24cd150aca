//! Writes the logits at each token of a sequence to a file: raw little-endian `f32`, of shape `[tokens, vocabulary]`.

mod common;

use common::cli::{Cli, Outcome, run};
use common::model::{MODEL_OPTIONS, ModelOptions};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use wavelm::Model;

const HELP: &str = "\
Writes the logits at each token of a sequence to a file: raw little-endian 32-bit floats, a row of the
vocabulary's size for each token.

Usage: logits [OPTIONS] --tokens 1,2,3 --out FILE

      --tokens LIST   token ids, with commas between them
  -o, --out FILE      the file to write
";

fn main() -> ExitCode {
    run(&[HELP, MODEL_OPTIONS], logits)
}

fn logits(cli: &mut Cli) -> Outcome {
    let mut options = ModelOptions::default();
    let mut tokens: Vec<u32> = Vec::new();
    let mut out = None;
    while let Some(name) = cli.next()? {
        match name.as_str() {
            "--tokens" => tokens = cli.list()?,
            "-o" | "--out" => out = Some(PathBuf::from(cli.value()?)),
            name => options.take(name, cli)?,
        }
    }
    let out = out.ok_or("no file to write is given: use --out FILE, or see --help")?;
    if tokens.is_empty() {
        return Err("no tokens are given: use --tokens 1,2,3, or see --help".into());
    }
    let model = options.load()?;
    write(&model, &tokens, &out).inspect_err(|_| {
        // Half a file would pass for a whole one of fewer tokens. What cannot be removed was never written.
        let _ = fs::remove_file(&out);
    })?;
    if !options.quiet {
        eprintln!("{}: {} x {} values", out.display(), tokens.len(), model.vocab_len());
    }
    Ok(())
}

fn write(model: &Model, tokens: &[u32], path: &Path) -> Outcome {
    let failed = |error: io::Error| format!("cannot write {}: {error}", path.display());
    let mut session = model.session()?;
    let mut file = BufWriter::new(File::create(path).map_err(failed)?);
    let mut written = Ok(());
    session.logits(tokens, |_, row| {
        if written.is_ok() {
            written = row.iter().try_for_each(|logit| file.write_all(&logit.to_le_bytes()));
        }
        Ok(())
    })?;
    written.and_then(|()| file.flush()).map_err(failed)?;
    Ok(())
}
