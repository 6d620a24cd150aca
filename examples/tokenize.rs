//! Text from standard input to token ids on standard output, or back. Works on vocabulary-only files too.

mod common;

use common::cli::{Cli, Outcome, run};
use common::default_model::default_model;
use std::io::{self, IsTerminal, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use wavelm::gguf::Gguf;
use wavelm::tokenizer::{EncodeOptions, TokenId, Tokenizer};

const HELP: &str = "\
Writes the token ids of the text on standard input, one a line.

Usage: tokenize [OPTIONS] < TEXT

  -m, --model FILE  the GGUF file (its tensors are not used)
                    [default: $WAVELM_MODEL, else SmolLM2-135M-Instruct, fetched once and cached]
      --no-special  take the names of special tokens in the text for plain text
      --no-bos      add neither BOS nor EOS, even if the file asks for it; with --decode: keep them
      --json        write one JSON array
      --decode      the other way round: token ids on standard input (separated by anything but digits) to text
  -h, --help        this text
";

fn main() -> ExitCode {
    run(&[HELP], tokenize)
}

fn tokenize(cli: &mut Cli) -> Outcome {
    let mut path = None;
    let mut options = EncodeOptions { add_special: true, parse_special: true };
    let (mut json, mut decode) = (false, false);
    while let Some(name) = cli.next()? {
        match name.as_str() {
            "-m" | "--model" => path = Some(PathBuf::from(cli.value()?)),
            "--no-special" => options.parse_special = false,
            "--no-bos" => options.add_special = false,
            "--json" => json = true,
            "--decode" => decode = true,
            _ => return Err(cli.unknown()),
        }
    }
    let path = path.map_or_else(default_model, Ok)?;
    let gguf = Gguf::open(&path)?;
    let tokenizer = Tokenizer::from_metadata(gguf.metadata()).map_err(|e| format!("{}: {e}", path.display()))?;
    let input = read_input()?;
    let output = if decode {
        let ids = ids(&input, &tokenizer)?;
        tokenizer.decode_with_special(if options.add_special { without_added(&ids, &tokenizer) } else { &ids })?
    } else {
        let ids: Vec<String> = tokenizer.encode(&input, options)?.iter().map(TokenId::to_string).collect();
        if json { format!("[{}]\n", ids.join(", ")) } else { ids.iter().map(|id| format!("{id}\n")).collect() }
    };
    Ok(io::stdout().write_all(output.as_bytes())?)
}

fn read_input() -> Outcome<String> {
    if io::stdin().is_terminal() {
        eprintln!("reading standard input; end it with Ctrl-D");
    }
    let mut input = Vec::new();
    io::stdin().lock().read_to_end(&mut input).map_err(|error| format!("cannot read standard input: {error}"))?;
    String::from_utf8(input).map_err(|error| {
        format!("standard input is not UTF-8: invalid from byte {} on", error.utf8_error().valid_up_to()).into()
    })
}

/// The tokens without the BOS and EOS that encoding adds.
fn without_added<'a>(mut ids: &'a [TokenId], tokenizer: &Tokenizer) -> &'a [TokenId] {
    if tokenizer.adds_bos() && ids.first().copied() == tokenizer.bos() {
        ids = &ids[1..];
    }
    match ids.split_last() {
        Some((last, rest)) if tokenizer.adds_eos() && Some(*last) == tokenizer.eos() => rest,
        _ => ids,
    }
}

/// The numbers in `text`, each of which must be a token.
fn ids(text: &str, tokenizer: &Tokenizer) -> Outcome<Vec<TokenId>> {
    let numbers = text.split(|c: char| !c.is_ascii_digit()).filter(|number| !number.is_empty());
    numbers
        .map(|number| match number.parse() {
            Ok(id) if (id as usize) < tokenizer.vocab_len() => Ok(id),
            _ => Err(format!("{number} is no token: the vocabulary has {}", tokenizer.vocab_len()).into()),
        })
        .collect()
}
