//! Where the Hub is and how it is talked to: what Hugging Face's own tools read from the environment.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::token::Token;
use crate::error::{Error, IoContext, Result};

/// The Hub itself.
const HUGGING_FACE: &str = "https://huggingface.co";

/// How the Hub is reached.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Scheme, host and port of the Hub, without a slash at the end (`HF_ENDPOINT`).
    pub endpoint: String,
    /// Who asks (`HF_TOKEN`, or the file that `hf auth login` writes).
    pub token: Option<Token>,
    /// Folder of the models' folders (`HF_HUB_CACHE`; `hub` in `HF_HOME`).
    pub cache: PathBuf,
    /// Whether the network must not be used (`HF_HUB_OFFLINE`).
    pub offline: bool,
    /// How long to wait for a connection.
    pub connect: Duration,
    /// How long to wait for an answer, or for more of a body (`HF_HUB_DOWNLOAD_TIMEOUT`).
    pub silence: Duration,
    /// How often a request is repeated that the Hub did not answer, or with "later".
    pub retries: u32,
    /// The first wait before a repetition; each is twice as long as the one before.
    pub first_wait: Duration,
    /// The longest wait before a repetition, however long the Hub asks for.
    pub longest_wait: Duration,
}

impl Settings {
    /// What the environment says.
    pub fn from_env() -> Result<Self> {
        Self::read(&|name| env::var_os(name).filter(|value| !value.is_empty()))
    }

    fn read(get: &dyn Fn(&str) -> Option<OsString>) -> Result<Self> {
        let text = |name: &str| get(name).map(|value| value.to_string_lossy().into_owned());
        let is_on = |name: &str| {
            text(name)
                .is_some_and(|v| matches!(v.to_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
        };
        let home = || get("HOME").map(PathBuf::from).unwrap_or_default();
        let place = |name: &str| get(name).map(|path| at_home(Path::new(&path), &home()));
        let caches = || place("XDG_CACHE_HOME").unwrap_or_else(|| home().join(".cache"));
        let hf_home = place("HF_HOME").unwrap_or_else(|| caches().join("huggingface"));
        let cache = place("HF_HUB_CACHE").or_else(|| place("HUGGINGFACE_HUB_CACHE"));
        let cache = cache.unwrap_or_else(|| hf_home.join("hub"));
        // Saved plans name files of the cache, and are carried out from anywhere.
        let cache = std::path::absolute(&cache).at("find", &cache)?;
        let token_file = place("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token"));
        let names = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"];
        let given = names.iter().find_map(|name| Some((name, text(name)?)));
        let token = match given {
            // Like Python's: nothing but white space is nobody.
            Some((_, given)) if given.trim().is_empty() => None,
            Some((name, given)) => Some(Token::new(&given).ok_or_else(|| Error::Usage {
                problem: format!(
                    "what `{name}` holds is no token: it has characters that none has"
                ),
                hint: "set it anew, or unset it to use what `hf auth login` saved".into(),
            })?),
            None if is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN") => None,
            None => fs::read_to_string(token_file).ok().and_then(|text| Token::new(&text)),
        };
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| HUGGING_FACE.to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            return Err(Error::Usage {
                problem: format!("`HF_ENDPOINT` is `{endpoint}`, which is no address"),
                hint: format!("unset it, or write it as `{HUGGING_FACE}`"),
            });
        }
        let seconds = |name: &str, default: f64| -> Result<Duration> {
            let Some(text) = text(name) else { return Ok(Duration::from_secs_f64(default)) };
            let parsed =
                text.trim().parse().ok().filter(|s: &f64| s.is_finite() && *s >= 0.0 && *s < 1e6);
            parsed.map(Duration::from_secs_f64).ok_or_else(|| Error::Usage {
                problem: format!("`{name}` is `{text}`, which is no number of seconds"),
                hint: format!("unset it, or give a number such as `{default}`"),
            })
        };
        Ok(Self {
            endpoint,
            token,
            cache,
            offline: is_on("HF_HUB_OFFLINE") || is_on("TRANSFORMERS_OFFLINE"),
            connect: seconds("HF_HUB_ETAG_TIMEOUT", 10.0)?,
            silence: seconds("HF_HUB_DOWNLOAD_TIMEOUT", 30.0)?,
            retries: 5,
            first_wait: seconds("ELO_SURGERY_HUB_FIRST_WAIT", 0.5)?,
            longest_wait: Duration::from_mins(1),
        })
    }
}

/// A path with `~` at its start, as Python expands it.
fn at_home(path: &Path, home: &Path) -> PathBuf {
    path.strip_prefix("~").map_or_else(|_| path.to_owned(), |rest| home.join(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<Settings> {
        Settings::read(&|name| {
            vars.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn the_environment_of_the_hub() {
        let plain = read(&[("HOME", "/nobody")]).unwrap();
        assert_eq!(plain.cache, PathBuf::from("/nobody/.cache/huggingface/hub"));
        assert_eq!((plain.endpoint.as_str(), plain.offline), (HUGGING_FACE, false));
        assert!(plain.token.is_none());
        let set = read(&[
            ("HF_HOME", "/h"),
            ("HF_ENDPOINT", "http://127.0.0.1:9/"),
            ("HF_TOKEN", "hf_x"),
            ("HF_HUB_OFFLINE", "true"),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "2.5"),
        ])
        .unwrap();
        assert_eq!((set.cache, set.endpoint.as_str()), ("/h/hub".into(), "http://127.0.0.1:9"));
        assert!(set.offline && set.token == Token::new("hf_x"));
        assert_eq!(set.silence, Duration::from_millis(2500));
        assert!(read(&[("HF_ENDPOINT", "ftp://x")]).is_err());
        let at_home = read(&[("HF_HOME", "~/hf"), ("HOME", "/nobody")]).unwrap();
        assert_eq!(at_home.cache, PathBuf::from("/nobody/hf/hub"));
        assert!(read(&[("HF_HUB_CACHE", "here")]).unwrap().cache.is_absolute());
        let wrong = read(&[("HF_TOKEN", "hf_two words")]).unwrap_err().to_string();
        assert!(wrong.contains("HF_TOKEN") && !wrong.contains("words"), "{wrong}");
        assert!(read(&[("HF_TOKEN", " ")]).unwrap().token.is_none());
        assert!(read(&[("HF_HUB_DOWNLOAD_TIMEOUT", "soon")]).is_err());
    }

    #[test]
    fn tokens_come_from_the_file_of_the_login() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("token"), "hf_file\n").unwrap();
        let path = home.path().to_str().unwrap();
        let found = read(&[("HF_HOME", path)]).unwrap().token;
        assert_eq!(found, Token::new("hf_file"));
        let refused = read(&[("HF_HOME", path), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]);
        assert!(refused.unwrap().token.is_none());
    }
}
