//! Token ids compared with llama.cpp's.

use std::path::{Path, PathBuf};
use wavelm::gguf::Gguf;
use wavelm::tokenizer::{EncodeOptions, Tokenizer};

const PLAIN: EncodeOptions = EncodeOptions { add_special: false, parse_special: false };

fn tokenizer(path: &Path) -> Tokenizer {
    let gguf = Gguf::open(path).unwrap();
    Tokenizer::from_metadata(gguf.metadata()).unwrap()
}

/// llama.cpp's own vectors: `ggml-vocab-NAME.gguf`, `.gguf.inp` with texts and `.gguf.out` with token ids. The files
/// are large, so that they are not part of this repository: the environment variable names a directory with them
/// (`models/` of llama.cpp).
#[test]
fn vectors_of_llama_cpp() {
    const DIRECTORY: &str = "WAVELM_LLAMA_CPP_MODELS";
    let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else {
        println!("skipped: {DIRECTORY} does not name llama.cpp's directory of vocabularies (models/)");
        return;
    };
    let mut names = Vec::new();
    for name in [
        "command-r",
        "deepseek-coder",
        "deepseek-llm",
        "falcon",
        "gemma-4",
        "gpt-2",
        "llama-bpe",
        "llama-spm",
        "mpt",
        "phi-3",
        "qwen2",
        "qwen35",
        "refact",
        "starcoder",
    ] {
        let path = directory.join(format!("ggml-vocab-{name}.gguf"));
        if !path.exists() {
            println!("skipped: {name}: there is no {}", path.display());
            continue;
        }
        let tokenizer = tokenizer(&path);
        let read = |suffix: &str| std::fs::read_to_string(format!("{}{suffix}", path.display())).unwrap();
        let (texts, expected) = (read(".inp"), read(".out"));
        let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
        let expected: Vec<&str> = expected.lines().collect();
        // The last separator may end the file.
        assert!(texts.len() - expected.len() <= 1, "{name}: {} texts, {} results", texts.len(), expected.len());
        for (text, expected) in texts.iter().zip(expected) {
            let expected: Vec<u32> = expected.split_whitespace().map(|id| id.parse().unwrap()).collect();
            assert_eq!(tokenizer.encode(text, PLAIN).unwrap(), expected, "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&expected), *text, "{name}");
        }
        names.push(name);
    }
    println!("compared: {}", names.join(", "));
}
