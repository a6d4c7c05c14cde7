//! The model card of a merge: where it comes from and how to make it again.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::Intermediate;
use super::config::Config;
use super::reference::Reference;
use super::tensors::role;
use crate::checkpoint::{Checkpoint, ModelCard, code_block, hub_id, inline, license_of};

/// The card of what `config` makes of the models, each with the path that names it there. Those that earlier documents made are not
/// there any more: what these were `made` of is.
pub(super) fn card(
    config: &Config,
    models: &[(&Reference, &Checkpoint)],
    made: &[Intermediate],
) -> String {
    let method = config.method.name;
    let mut text = String::from("This checkpoint was merged with elo-surgery");
    match source_of(method) {
        Some((title, url)) => {
            let _ = writeln!(text, " by `{method}` ([{title}]({url})).");
        }
        None => {
            let _ = writeln!(text, " by `{method}`.");
        }
    }
    text.push_str("\n## Models\n\n| model | part in the merge | licence |\n|---|---|---|\n");
    let mut base_models = Vec::new();
    let mut licenses = Vec::new();
    let parents = parents(config, models, made);
    let configuration = without_places(&config.text, parents.iter().map(|(of, ..)| of));
    for (reference, root, part) in parents {
        let license = license_of(&root);
        let id = hub_id(&reference.path.to_string_lossy(), &root);
        let commit = root.file_name().and_then(|name| name.to_str());
        let commit =
            commit.filter(|name| name.len() == 40 && name.bytes().all(|b| b.is_ascii_hexdigit()));
        let shown = match &id {
            Some(id) if let Some(commit) = commit => {
                format!("[{}@{commit}](https://huggingface.co/{id}/tree/{commit})", inline(id))
            }
            Some(id) => format!("[{}](https://huggingface.co/{id})", inline(id)),
            None => inline(&model_name(&reference.path)),
        };
        let shown = match &reference.lora {
            Some(lora) => format!("{shown} with the adapter {}", inline(&model_name(lora))),
            None => shown,
        };
        let said = license.as_deref().map_or_else(|| "not said".to_owned(), inline);
        let _ = writeln!(text, "| {shown} | {part} | {said} |");
        base_models.extend(id.filter(|id| !base_models.contains(id)));
        licenses.push(license);
    }
    let _ = write!(text, "\n## Configuration\n\n{}\n", code_block("yaml", &configuration));
    text.push_str(
        "\n`elo-surgery.json` beside this file has the digests of all files and what they were made from.\n",
    );
    let agreed = licenses.first().cloned().flatten();
    let card = ModelCard {
        title: format!("A merge by {}", inline(method)),
        base_models,
        relation: Some("merge"),
        // Whether licences that differ go together is for people to decide.
        license: agreed.filter(|first| licenses.iter().all(|other| other.as_ref() == Some(first))),
        tags: ["merge", "elo-surgery"].map(str::to_owned).to_vec(),
        text,
        ..ModelCard::default()
    };
    card.to_text()
}

/// Every model that something was taken from, where it lies, and its part.
fn parents(
    config: &Config,
    models: &[(&Reference, &Checkpoint)],
    made: &[Intermediate],
) -> Vec<(Reference, PathBuf, String)> {
    let mut found: Vec<(Reference, PathBuf, String)> = Vec::new();
    for (reference, model) in models {
        let part = if role(config, reference) == "base" { "base model" } else { "merged" };
        let own = ((*reference).clone(), model.root().to_owned(), part.to_owned());
        let mut open = vec![own];
        while let Some((reference, root, part)) = open.pop() {
            match made.iter().find(|one| one.name == reference.path) {
                Some(one) => {
                    let lora = reference.lora.as_deref().map(model_name);
                    let lora =
                        lora.map_or(String::new(), |lora| format!(" with the adapter {lora}"));
                    let name = one.name.display();
                    let part = format!("of `{name}`, an intermediate model{lora}");
                    let of_it = one.parents.iter().rev();
                    open.extend(of_it.map(|(of, at)| (of.clone(), at.clone(), part.clone())));
                }
                None => match found.iter_mut().find(|known| known.0 == reference) {
                    Some(known) if known.2 != part => known.2 = format!("{}, {part}", known.2),
                    Some(_) => {}
                    None => found.push((reference, root, part)),
                },
            }
        }
    }
    found
}

/// Local models are called by the name of their directory: where it lay says nothing to others.
fn model_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// A configuration with the places of models on this machine reduced to their names. `mergekit_config.yml` has it as it was.
fn without_places<'a>(text: &str, references: impl Iterator<Item = &'a Reference>) -> String {
    let paths = references.flat_map(|of| [Some(&of.path), of.lora.as_ref()]).flatten();
    let is_place = |path: &&PathBuf| {
        path.is_absolute()
            || path.starts_with(".")
            || path.starts_with("..")
            || path.starts_with("~")
    };
    let mut places: Vec<&PathBuf> = paths.filter(is_place).collect();
    // The longest first: one may be the beginning of another.
    places.sort_by_key(|path| std::cmp::Reverse(path.as_os_str().len()));
    places.iter().fold(text.to_owned(), |text, path| {
        let place = path.to_string_lossy();
        let name = hub_id(&place, path).unwrap_or_else(|| model_name(path));
        text.replace(&*place, &name)
    })
}

/// Where a method was described.
fn source_of(method: &str) -> Option<(&'static str, &'static str)> {
    Some(match method {
        "linear" => ("Model Soups", "https://arxiv.org/abs/2203.05482"),
        "task_arithmetic" => ("Task Arithmetic", "https://arxiv.org/abs/2212.04089"),
        "ties" => ("TIES", "https://arxiv.org/abs/2306.01708"),
        "dare_linear" | "dare_ties" => ("DARE", "https://arxiv.org/abs/2311.03099"),
        "breadcrumbs" | "breadcrumbs_ties" => {
            ("Model Breadcrumbs", "https://arxiv.org/abs/2312.06795")
        }
        "della" | "della_linear" => ("DELLA", "https://arxiv.org/abs/2406.11617"),
        "sce" => ("SCE", "https://arxiv.org/abs/2408.07990"),
        "ram" | "ramplus_tl" => ("RAM", "https://arxiv.org/abs/2601.13572"),
        "model_stock" => ("Model Stock", "https://arxiv.org/abs/2403.19522"),
        "slerp" => ("SLERP", "https://en.wikipedia.org/wiki/Slerp"),
        "karcher" => ("Karcher mean", "https://arxiv.org/abs/2603.04972"),
        _ => return None,
    })
}
