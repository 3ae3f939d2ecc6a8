//! The masks that the device makes, against those of the geometry.

use super::*;
use crate::ggml::{Backend, CancelFlag, Device};
use half::f16;

/// The mask of a step, made by ggml.
fn device_mask(engine: &mut Engine, geometry: &Geometry, n_view: u32, span: Span) -> Vec<f16> {
    let mut g = GraphBuilder::new(16).unwrap();
    let params = g.kv_params("params").unwrap();
    let mask = g.kv_mask(&params, causal_mask(geometry, n_view, span.n)).unwrap();
    g.output("mask", &mask).unwrap();
    engine.load(0, g.finish().unwrap()).unwrap();
    engine.write(0, &params, &causal_params(span).words()).unwrap();
    engine.compute(0).unwrap();
    let mut out = vec![f16::ZERO; (n_view * span.n) as usize];
    engine.read(0, &mask, &mut out).unwrap();
    out
}

fn host_mask(geometry: &Geometry, n_view: u32, span: Span) -> Vec<f16> {
    let mut out = vec![f16::ONE; (n_view * span.n) as usize];
    geometry.fill_mask_f16(&mut out, n_view, span.first, span.n, span.end());
    out
}

#[test]
fn device_masks_are_those_of_the_geometry() {
    let cancel = CancelFlag::default();
    let cpu = Backend::new(Device::cpu().unwrap(), 2, &cancel).unwrap();
    let mut engine = Engine::new(vec![cpu], cancel).unwrap();
    engine.add_slot(64).unwrap();
    let mut tested = 0;
    for (window, n_batch, n_ctx) in [(64, 32, 4096), (512, 512, 4096), (1024, 64, 2048), (100, 7, 600)] {
        let geometries =
            [Geometry::full(n_ctx).unwrap(), Geometry::swa(window, n_batch, n_batch, n_ctx).unwrap()];
        for geometry in &geometries {
            let around = [0, 1, window - 1, window, geometry.slots() - 1, geometry.slots(), n_ctx - n_batch];
            for first in around {
                for n in [1, 2, n_batch / 2, n_batch] {
                    let span = Span { first, n };
                    if span.end() > n_ctx {
                        continue;
                    }
                    // The least view, and the largest graph's.
                    for n_view in [geometry.n_view(span.end()), geometry.slots()] {
                        let got = device_mask(&mut engine, geometry, n_view, span);
                        assert!(got == host_mask(geometry, n_view, span), "{geometry:?} {span:?} {n_view}");
                        tested += 1;
                    }
                }
            }
        }
    }
    assert!(tested > 200, "{tested}");
}
