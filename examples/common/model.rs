//! The options about the model that most examples take, and loading it.

use super::cli::{Cli, Outcome};
use super::default_model::default_model;
use indicatif::{ProgressBar, ProgressStyle};
use std::path::PathBuf;
use wavelm::{Device, Model, Placement, Precision};

/// The help text of [`ModelOptions`].
pub const MODEL_OPTIONS: &str = "
Model:
  -m, --model FILE    a GGUF file; of a split model, any part
                      [default: $WAVELM_MODEL, else SmolLM2-135M-Instruct, fetched once and cached]
      --device D      auto, cpu or hip:N [default: auto]
      --gpu-layers N  layers that the GPU runs [default: as many as fit]
  -t, --threads N     threads that compute [default: $WAVELM_THREADS, else one per physical core]
  -c, --ctx N         context length in tokens [default: what the model was trained for]
      --no-map        read the file into memory instead of mapping it: later changes of it do not matter
      --reference     compute everything in 32-bit floats: slow and exact
  -q, --quiet         nothing on standard error but warnings and errors
  -v, --verbose       more on standard error
  -h, --help          this text
";

/// Which model, and how to run it.
#[derive(Default)]
pub struct ModelOptions {
    /// `None` for the default model.
    pub path: Option<PathBuf>,
    pub device: Device,
    pub placement: Placement,
    pub threads: Option<usize>,
    pub context: Option<usize>,
    pub precision: Precision,
    pub no_map: bool,
    pub quiet: bool,
}

impl ModelOptions {
    /// Takes the option `name` if it is about the model, or reports that there is no such option.
    pub fn take(&mut self, name: &str, cli: &mut Cli) -> Outcome {
        match name {
            "-m" | "--model" => self.path = Some(cli.value()?.into()),
            "--device" => self.device = cli.parse()?,
            "--gpu-layers" => self.placement = Placement::Layers(cli.parse()?),
            "-t" | "--threads" => self.threads = Some(cli.parse()?),
            "-c" | "--ctx" => self.context = Some(cli.parse()?),
            "--no-map" => self.no_map = true,
            "--reference" => self.precision = Precision::Reference,
            "-q" | "--quiet" => self.quiet = true,
            "-v" | "--verbose" => log::set_max_level(log::LevelFilter::Info),
            _ => return Err(cli.unknown()),
        }
        Ok(())
    }

    /// The file: the given one or the default model, fetched if need be.
    pub fn file(&self) -> Outcome<PathBuf> {
        match &self.path {
            Some(path) => Ok(path.clone()),
            None => Ok(default_model()?),
        }
    }

    /// Loads the model behind a progress bar and tells where it runs.
    pub fn load(&self) -> Outcome<Model> {
        let bar = if self.quiet { ProgressBar::hidden() } else { ProgressBar::new(0) };
        bar.set_style(ProgressStyle::with_template("loading {bar:40} {bytes}/{total_bytes}")?);
        let options = Model::options()
            .device(self.device)
            .placement(self.placement.clone())
            .precision(self.precision)
            .map(!self.no_map);
        let mut options = options.probe_in_child(true).on_progress({
            let bar = bar.clone();
            move |progress| {
                bar.set_length(progress.total_bytes);
                bar.set_position(progress.bytes);
                progress.go_on()
            }
        });
        if let Some(threads) = self.threads {
            options = options.threads(threads);
        }
        if let Some(context) = self.context {
            options = options.context(context);
        }
        let model = options.load(self.file()?);
        bar.finish_and_clear();
        let model = model?;
        if !self.quiet {
            eprintln!("{}, {} threads: {}", title(&model), model.threads(), model.device_report());
        }
        Ok(model)
    }
}

/// What to call a model: its own name, else its file's.
pub fn title(model: &Model) -> String {
    let file = || model.gguf().path().file_name().map(|name| name.to_string_lossy().into_owned());
    model.name().map(str::to_owned).or_else(file).unwrap_or_else(|| "the model".to_owned())
}
