//! From settings to models that can be served: find, verify, plan memory, load, start.

mod bare;
mod encoder;
mod generator;
mod memory;
mod proof;
mod ranks;
mod text;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::{Context as _, bail};
use rempart_hub::signature::Trust;
use rempart_hub::store;
use rempart_kernels::cpu;
use rempart_models::{Embedder, LoadedEncoder, ModelFiles};

use crate::config::{Device, Settings};
use crate::metrics::Metrics;
use crate::registry::{First, Load, Loaded, Refused, Wanted};
use crate::turns::Turns;
pub use bare::{bare, device_for, prepare};
pub(crate) use encoder::Files as EncoderFiles;
use generator::Plan;
pub use generator::ServedModel;
pub(crate) use generator::plan_request;
pub use memory::available;
pub(crate) use memory::{GroupMemory, group_memory, total};
use proof::Proven;
pub use ranks::{Ranks, run as rank};

/// Loads models, at start and later, under one plan of memory.
pub struct Loader {
    settings: Settings,
    device: candle_core::Device,
    /// Bytes that all models may take together.
    memory: u64,
    /// What models had when they were loaded first, by what is loaded: they get the same again if that is free.
    plans: Mutex<BTreeMap<PathBuf, Plan>>,
    turns: Turns,
    metrics: Metrics,
    /// Whose signatures models must have, if any.
    trust: Option<Trust>,
}

/// A model of the command line that generates text, before anything of it is in memory.
struct Opened {
    source: String,
    names: Vec<String>,
    found: Proven,
    files: ModelFiles,
}

/// An encoder of the command line, likewise.
struct OpenedEncoder {
    source: String,
    found: Proven,
    files: encoder::Files,
}

/// A model's files, by what they are for.
enum Files {
    Generator(Box<ModelFiles>),
    Encoder(encoder::Files),
}

impl Loader {
    /// Prepares the device and the pool of threads, and sees how much memory there is.
    ///
    /// # Errors
    /// Says which setting can't work here.
    pub fn new(settings: Settings, metrics: Metrics) -> anyhow::Result<Self> {
        let trust = proof::trust(&settings.model.trust)?;
        let device = prepare(&settings.model.compute, settings.model.ranks)?;
        let memory = match settings.model.memory_max_bytes {
            Some(max) => max,
            None => memory::available(&device)?,
        };
        Ok(Self {
            settings,
            device,
            memory,
            plans: Mutex::default(),
            turns: Turns::default(),
            metrics,
            trust,
        })
    }

    /// Finds the models of the command line, checks their files against their manifests, plans memory and loads them.
    ///
    /// # Errors
    /// Says what is wrong with which file or setting, and what to do.
    pub fn load_first(&mut self) -> anyhow::Result<Vec<First>> {
        let (mut encoders, mut generators) = (Vec::new(), Vec::new());
        for source in &self.settings.model.models {
            let found = self.find_proven(source);
            let found = found.map_err(|error| Refused::of(&self.name_of(source))(error))?;
            let source = source.clone();
            match open_files(&found.model.path).map_err(Refused::of(&found.model.name))? {
                Files::Encoder(files) => encoders.push(OpenedEncoder { source, found, files }),
                Files::Generator(files) => generators.push(Opened {
                    source,
                    names: vec![found.model.name.clone()],
                    found,
                    files: *files,
                }),
            }
        }
        let served_names = &self.settings.model.served_names;
        match generators.as_mut_slice() {
            _ if served_names.is_empty() => {}
            [] => bail!("--served-model-name names the model that generates text, and there is none"),
            [one] => one.names.clone_from(served_names),
            [first, second, ..] => bail!(
                "--served-model-name names the one model that generates text, and {} and {} both do: leave it out, and they \
                 go by their own names",
                first.found.model.name,
                second.found.model.name
            ),
        }
        check_names(&generators, &encoders)?;
        self.choose_device(&generators)?;
        self.load_together(generators, encoders)
    }

    /// Leaves a card that was not asked for where it can't compute one of the models: all are then computed by the processor.
    fn choose_device(&mut self, generators: &[Opened]) -> anyhow::Result<()> {
        let compute = &self.settings.model.compute;
        for Opened { found, files, .. } in generators {
            let name = &found.model.name;
            let device = device_for(name, files, compute, &self.device);
            let device = device.map_err(Refused::of(name))?;
            let left = device.is_cpu() && !self.device.is_cpu();
            self.device = device;
            if left && self.settings.model.memory_max_bytes.is_none() {
                self.memory = memory::available(&self.device)?;
            }
        }
        Ok(())
    }

    /// Whether the device can compute a model that comes later.
    fn check_device(&self, files: &ModelFiles) -> anyhow::Result<()> {
        let refused = bare::card_refuses(files, &self.settings.model.compute, &self.device);
        refused.map_or(Ok(()), |why| Err(anyhow::Error::msg(why)))
    }

    /// Counts the weights of all models first, and shares what remains among those that keep keys and values.
    fn load_together(
        &self,
        generators: Vec<Opened>,
        encoders: Vec<OpenedEncoder>,
    ) -> anyhow::Result<Vec<First>> {
        let mut weights = Vec::new();
        for opened in &generators {
            let bytes = generator::weights_bytes(&opened.files, self.settings.model.ranks);
            weights.push(bytes.map_err(Refused::of(&opened.found.model.name))?);
        }
        let encoder_plans = self.plan_encoders(&encoders, &weights)?;
        let encoders_bytes = encoder_plans.iter().map(|plan| self.planned(plan.bytes)).sum();
        let available = shares(self.memory, encoders_bytes, &weights);
        // All plans before all weights: what does not fit is told at once.
        let mut plans = Vec::new();
        for (opened, available) in generators.iter().zip(available) {
            let plan = generator::plan(&opened.files, &self.settings, &self.device, available);
            let plan = plan.with_context(|| opened.found.model.name.clone());
            plans.push(plan.map_err(Refused::of(&opened.found.model.name))?);
        }
        let mut beside = Vec::new();
        for (opened, plan) in encoders.into_iter().zip(encoder_plans) {
            let OpenedEncoder { source, found, files } = opened;
            let names = vec![found.model.name.clone()];
            let loaded = self.load_encoder(&found, &names, &files, &plan);
            let loaded = loaded.map_err(Refused::of(&found.model.name))?;
            beside.push(First {
                source,
                names,
                loaded,
            });
        }
        let mut all = Vec::new();
        for (opened, plan) in generators.into_iter().zip(plans) {
            let Opened {
                source,
                names,
                found,
                files,
            } = opened;
            let loaded = self.load_generator(&found, &names, &files, plan);
            let loaded = loaded.map_err(Refused::of(&found.model.name))?;
            all.push(First {
                source,
                names,
                loaded,
            });
        }
        all.extend(beside);
        Ok(all)
    }

    /// A decoder that embeds gets no more than its share: of what all weights leave, a part as large as that of each model that
    /// generates there.
    fn plan_encoders(
        &self,
        encoders: &[OpenedEncoder],
        generators: &[u64],
    ) -> anyhow::Result<Vec<encoder::Plan>> {
        let bytes = |decoders: bool| {
            let these = encoders
                .iter()
                .filter(move |opened| opened.files.is_decoder() == decoders);
            these.map(|opened| opened.files.weights_bytes())
        };
        let mut weights: Vec<u64> = bytes(true).collect();
        if self.encoders_share() {
            weights.extend(generators);
        }
        let memory = self.encoders_memory(self.memory)?;
        let mut shares = shares(memory, bytes(false).sum(), &weights).into_iter();
        let plan = |opened: &OpenedEncoder| {
            let share = opened.files.is_decoder().then(|| shares.next()).flatten();
            let plan = opened.files.plan(&self.settings.model, share.unwrap_or(0));
            let plan = plan.with_context(|| opened.found.model.name.clone());
            plan.map_err(Refused::of(&opened.found.model.name))
        };
        encoders.iter().map(plan).collect()
    }

    fn load_generator(
        &self,
        found: &Proven,
        names: &[String],
        files: &ModelFiles,
        plan: Plan,
    ) -> anyhow::Result<Loaded> {
        // A device of its own: see `open_cuda`.
        let device = if self.device.is_cpu() {
            self.device.clone()
        } else {
            rempart_kernels::open_cuda()?
        };
        let served = generator::load(&self.settings, &device, &found.model, files, &plan, &self.turns)?;
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        // A plan of when memory was short is for once.
        if plans
            .get(&found.model.path)
            .is_none_or(|first| !first.is_for(files))
        {
            plans.insert(found.model.path.clone(), plan);
        }
        drop(plans);
        found.check_unchanged()?;
        let mut loaded = served.start(names.to_vec(), &self.settings.engine, &self.metrics, &self.turns)?;
        loaded.proof = found.proof.clone();
        Ok(loaded)
    }

    fn load_encoder(
        &self,
        found: &Proven,
        names: &[String],
        files: &encoder::Files,
        plan: &encoder::Plan,
    ) -> anyhow::Result<Loaded> {
        let name = names.first().unwrap_or(&found.model.name).clone();
        let served = encoder::load(&self.settings.model, &found.model, files, plan)?;
        found.check_unchanged()?;
        let mut loaded = served.start(name, &self.settings.engine, &self.metrics, &self.turns)?;
        loaded.planned = self.planned(loaded.planned);
        loaded.proof = found.proof.clone();
        Ok(loaded)
    }

    /// Whether encoders' memory is of what the plan divides: they compute on the processor, and a card's memory is apart, unless
    /// the operator has set one limit for both.
    fn encoders_share(&self) -> bool {
        self.device.is_cpu() || self.settings.model.memory_max_bytes.is_some()
    }

    /// How much of an encoder's memory is of what the plan divides.
    fn planned(&self, bytes: u64) -> u64 {
        if self.encoders_share() { bytes } else { 0 }
    }

    /// Memory that encoders may take of what is `left` to the plan, or of the processor's where that is apart.
    fn encoders_memory(&self, left: u64) -> anyhow::Result<u64> {
        if self.encoders_share() {
            return Ok(left);
        }
        memory::available(&candle_core::Device::Cpu)
    }

    /// What is left of the memory when other models have `taken`.
    fn left(&self, taken: u64) -> anyhow::Result<u64> {
        let left = self.memory.saturating_sub(taken);
        if self.settings.model.memory_max_bytes.is_some() {
            return Ok(left);
        }
        // Other programs may have taken what was free at start.
        Ok(left.min(memory::available(&self.device)?))
    }

    /// What a model had at first, if that is free, and otherwise what a new plan gives it.
    fn plan_again(&self, found: &Proven, files: &ModelFiles, available: u64) -> anyhow::Result<Plan> {
        let plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let before = plans.get(&found.model.path).cloned();
        drop(plans);
        let fits = |plan: &Plan| plan.is_for(files) && plan.memory.total() <= available;
        if let Some(mut plan) = before.filter(fits) {
            // Where it is measured again, it is within what there is now.
            plan.memory.available = plan.memory.available.min(available);
            return Ok(plan);
        }
        generator::plan(files, &self.settings, &self.device, available)
    }

    /// What a model is called, as far as it is found.
    fn name_of(&self, source: &str) -> String {
        let found = store::resolve(&self.settings.model.store, source);
        found.map_or_else(|_| source.to_owned(), |found| found.name)
    }

    fn find_proven(&self, source: &str) -> anyhow::Result<Proven> {
        Proven::find(&self.settings.model, self.trust.as_ref(), source)
    }
}

impl Load for Loader {
    fn find(&self, name: &str) -> Option<String> {
        // A path, or a reference to a hub, is for the command line alone.
        store::check_name(name).ok()?;
        let found = store::resolve(&self.settings.model.store, name).ok()?;
        Some(found.name)
    }

    fn check(&self, wanted: &Wanted) -> anyhow::Result<()> {
        let found = self.find_proven(&wanted.source)?;
        match open_files(&found.model.path)? {
            Files::Encoder(files) => {
                files.check(&found.model)?;
                let available = self.memory.saturating_sub(wanted.taken);
                files
                    .plan(&self.settings.model, self.encoders_memory(available)?)
                    .map(drop)
            }
            Files::Generator(files) => {
                self.check_device(&files)?;
                text::build(&files).map(drop)?;
                let available = self.memory.saturating_sub(wanted.taken);
                generator::plan(&files, &self.settings, &self.device, available).map(drop)
            }
        }
    }

    fn load(&self, wanted: &Wanted) -> anyhow::Result<Loaded> {
        let found = self.find_proven(&wanted.source)?;
        let left = self.left(wanted.taken)?;
        let files = match open_files(&found.model.path)? {
            Files::Encoder(files) => files,
            Files::Generator(files) => {
                self.check_device(&files)?;
                let plan = self.plan_again(&found, &files, left)?;
                return self.load_generator(&found, &wanted.names, &files, plan);
            }
        };
        let plan = files.plan(&self.settings.model, self.encoders_memory(left)?)?;
        if self.planned(plan.bytes) > left {
            bail!(
                "its weights need {} MiB, and {} MiB are left beside the other models",
                plan.bytes >> 20,
                left >> 20
            );
        }
        self.load_encoder(&found, &wanted.names, &files, &plan)
    }
}

/// Bytes that each model with keys and values may plan with, in the order of `weights`: its own weights, and an equal part of what the weights of all
/// leave, `others` being those of models without.
pub(crate) fn shares(memory: u64, others: u64, weights: &[u64]) -> Vec<u64> {
    let left = memory.saturating_sub(others);
    let total: u64 = weights.iter().sum();
    let share = left.saturating_sub(total) / (weights.len() as u64).max(1);
    let of = |own: &u64| match weights {
        // What it is refused for is then told with the whole figure.
        [_] => left,
        _ => own + share,
    };
    weights.iter().map(of).collect()
}

/// The files of a model that makes vectors; `None` of one that generates text.
///
/// # Errors
/// They are malformed.
pub(crate) fn encoder_files(path: &Path) -> anyhow::Result<Option<EncoderFiles>> {
    Ok(match open_files(path)? {
        Files::Encoder(files) => Some(files),
        Files::Generator(_) => None,
    })
}

fn check_names(generators: &[Opened], encoders: &[OpenedEncoder]) -> anyhow::Result<()> {
    let generators = generators.iter().flat_map(|opened| &opened.names);
    let mut names: Vec<&String> = generators
        .chain(encoders.iter().map(|opened| &opened.found.model.name))
        .collect();
    names.sort_unstable();
    if let Some([name, _]) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        bail!("two models have the name {name}");
    }
    Ok(())
}

fn open_files(path: &Path) -> anyhow::Result<Files> {
    if LoadedEncoder::is_one(path) {
        return Ok(Files::Encoder(encoder::Files::of_folder(path)));
    }
    let open = || {
        let files = ModelFiles::open(path)?;
        if !files.embeds()? {
            return Ok(Files::Generator(files.into()));
        }
        let embedder = Embedder::new(files)?;
        Ok::<_, rempart_models::Error>(Files::Encoder(encoder::Files::Decoder(embedder.into())))
    };
    open().with_context(|| format!("loading {}", path.display()))
}

/// Makes kernels other than the best the ones that compute.
fn choose_kernels(name: Option<&str>) -> anyhow::Result<()> {
    let Some(name) = name else {
        return Ok(());
    };
    if !cpu::choose(name) && cpu::best().name != name {
        let names: Vec<&str> = cpu::all().iter().map(|table| table.name).collect();
        bail!("--kernels {name}: this processor runs {}", names.join(", "));
    }
    Ok(())
}

fn loading_bar() -> indicatif::ProgressBar {
    let style = indicatif::ProgressStyle::with_template("loading {wide_bar} {bytes}/{total_bytes}")
        .expect("the template is a constant. This is a bug.");
    indicatif::ProgressBar::new(0).with_style(style)
}

/// The device that was asked for; of its own accord the server takes a card where there is one.
fn open(device: Device) -> anyhow::Result<candle_core::Device> {
    let cuda = rempart_kernels::open_cuda;
    match device {
        Device::Cpu => Ok(candle_core::Device::Cpu),
        Device::Cuda => cuda().context(
            "--device cuda: no CUDA card can be used; nvidia-smi tells whether there is a driver and a card, \
             and --device cpu does without",
        ),
        Device::Auto if rempart_kernels::HAS_CUDA => Ok(cuda().unwrap_or_else(|error| {
            tracing::warn!(
                %error,
                "no CUDA card can be used: the model computes on the CPU; nvidia-smi tells whether there is a \
                 driver and a card, and --device cpu asks for none"
            );
            candle_core::Device::Cpu
        })),
        Device::Auto => Ok(candle_core::Device::Cpu),
    }
}

fn created(path: &Path) -> i64 {
    let modified = std::fs::metadata(path).and_then(|metadata| metadata.modified());
    let since = modified
        .ok()
        .and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    since.map_or(0, |since| since.as_secs().cast_signed())
}

#[cfg(test)]
mod tests {
    use super::shares;

    #[test]
    fn what_the_weights_leave_is_shared_equally() {
        assert_eq!(shares(100, 10, &[20, 30]), [40, 50]);
        assert_eq!(shares(100, 10, &[20]), [90], "one has all that is left");
        assert_eq!(
            shares(100, 10, &[60, 50]),
            [60, 50],
            "no room for keys and values"
        );
        assert!(shares(100, 10, &[]).is_empty());
    }
}
