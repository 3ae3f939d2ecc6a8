//! Models spread over devices, and what is said before anything is loaded. CI has no second device: what runs there is
//! the CPU's half. `golden` checks the rest on a machine that has some (docs/cuda.md).

use gemma4::{Device, Error, GenerateOptions, KvPolicy, LoadOptions, Model, Session, SessionOptions};
use gemma4_tests::{repo, tiny};
use std::ops::ControlFlow;

fn load(options: &LoadOptions) -> gemma4::Result<Model> {
    Model::load_with(tiny::path("tiny-gemma4-q8_0.gguf"), options, |_| ControlFlow::Continue(()))
}

fn text(model: &Model) -> Vec<u32> {
    let mut session = Session::new(model, &SessionOptions::default().n_ctx(256)).unwrap();
    let how = GenerateOptions::greedy().max_tokens(24).ignore_eos(true);
    session.generate(&[2, 300, 301], &how).unwrap().map(|piece| piece.unwrap().token.unwrap()).collect()
}

#[test]
fn a_plan_needs_no_model_in_memory() {
    let path = tiny::path("tiny-gemma4-q8_0.gguf");
    let load = LoadOptions::default().device(Device::cpu().unwrap()).use_mmap(false).repack(false);
    for kv in [KvPolicy::F16, "q8_0".parse().unwrap()] {
        let options = SessionOptions::default().n_ctx(3000).kv(kv);
        let planned = Model::plan(&path, &load, &options).unwrap();
        let model = Model::load_with(&path, &load, |_| ControlFlow::Continue(())).unwrap();
        let later = Session::plan(&model, &options).unwrap();
        assert_eq!((planned.weights, planned.kv), (later.weights, later.kv));
        assert_eq!((planned.compute, planned.host), (later.compute, later.host));
        assert_eq!(planned.layers, later.layers);
        let [cpu] = planned.devices.as_slice() else { panic!("{planned}") };
        assert_eq!(cpu.needed, planned.total());
        assert_eq!(later.devices[0].needed, planned.total() - planned.weights);
        planned.check().unwrap();
    }
}

#[test]
fn a_plan_that_cannot_work_says_what_is_missing() {
    let path = repo("models/tiny-gemma4/tiny-gemma4-q8_0.gguf");
    let options = SessionOptions::default().n_ctx(1 << 30).kv(KvPolicy::F16);
    let plan = Model::plan(path, &LoadOptions::default().device(Device::cpu().unwrap()), &options).unwrap();
    match plan.check() {
        Err(Error::OutOfMemory { device, needed, available, .. }) => {
            assert_eq!(device, "CPU");
            assert!(needed > available);
            assert_eq!(needed, plan.devices[0].needed);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn parts_may_stay_with_the_cpu() {
    let cpu = Device::cpu().unwrap();
    let expected = text(&load(&LoadOptions::default().device(cpu).repack(false)).unwrap());
    for options in [
        LoadOptions::default().n_gpu_layers(0),
        LoadOptions::default().device(cpu).n_gpu_layers(3).n_cpu_moe(99).repack(false),
        LoadOptions::default().devices([cpu]).shares([1.0]).repack(false),
    ] {
        let model = load(&options).unwrap();
        assert_eq!(model.devices(), [cpu]);
        assert_eq!(model.device(), cpu);
        assert_eq!(text(&model), expected, "{options:?}");
    }
}

#[test]
fn spreads_that_cannot_be_are_refused() {
    let cpu = Device::cpu().unwrap();
    for options in [
        LoadOptions::default().devices([cpu, cpu]),
        LoadOptions::default().devices([cpu]).shares([1.0, 1.0]),
        LoadOptions::default().devices([cpu]).shares([0.0]),
        LoadOptions::default().devices([cpu]).shares([f32::INFINITY]),
    ] {
        assert!(matches!(load(&options), Err(Error::Option { .. })), "{options:?}");
    }
}
