//! An answer as a Rust value: the type's JSON schema constrains the text, so that it always parses.

use clap::Parser;
use gemma4::chat::{ChatOptions, Message};
use gemma4::grammar::Grammar;
use gemma4::{GenerateOptions, SamplingOptions, Session, StopReason};
use gemma4_examples::{Failure, ModelArgs, SamplingArgs, run_main};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::process::ExitCode;

#[derive(Parser)]
#[command(about = "Has the model describe something as a Rust value")]
struct Cli {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// What to describe
    #[arg(default_value = "a house by a river")]
    thing: String,
}

/// What the model is asked for. The bounds keep a small model from writing without end.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Thing {
    /// What it is called.
    #[schemars(length(min = 1, max = 24))]
    name: String,
    kind: Kind,
    /// From 0 to 100.
    #[schemars(range(min = 0, max = 100))]
    size: u8,
    /// Words that fit it.
    #[schemars(length(min = 1, max = 3), inner(length(min = 1, max = 16)))]
    words: Vec<String>,
    #[schemars(length(max = 40))]
    remark: Option<String>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Place,
    Person,
    Idea,
}

/// Asks for a value of type `T`.
fn ask<T: JsonSchema + DeserializeOwned>(
    session: &mut Session,
    question: &str,
    sampling: SamplingOptions,
) -> Result<T, Failure> {
    let schema = serde_json::to_value(schemars::schema_for!(T))?;
    let system = format!("Answer in JSON of this schema: {schema}");
    let messages = [Message::system(system), Message::user(question)];
    let prompt = session.model().encode_chat(&messages, &ChatOptions::default())?;
    let options = GenerateOptions::default().sampling(sampling).grammar(Grammar::json_schema(&schema)?);
    let kept = session.reuse_prefix(&prompt);
    let mut generation = session.generate(&prompt[kept..], &options)?;
    let text = generation.text()?;
    match generation.stop_reason() {
        Some(StopReason::GrammarEnd | StopReason::EndToken(_)) => {}
        other => return Err(format!("the answer is not complete ({other:?}): {text}").into()),
    }
    println!("{text}");
    Ok(serde_json::from_str(&text)?)
}

fn run(cli: &Cli) -> Result<(), Failure> {
    let model = cli.model.load()?;
    let mut session = Session::new(&model, &cli.model.session(4096))?;
    let sampling = cli.sampling.over(SamplingOptions::default());
    let thing: Thing = ask(&mut session, &format!("Describe {}.", cli.thing), sampling)?;
    println!("{thing:#?}");
    Ok(())
}

fn main() -> ExitCode {
    run_main(env!("CARGO_BIN_NAME"), || run(&Cli::parse()))
}
