"""Datasets: one reader per annotation format, combinations of readers, transforms, samplers."""

from pixelsail_mm.datasets.base import PixelDataset
from pixelsail_mm.datasets.coco_panoptic import COCOPanopticDataset, COCOSemanticDataset
from pixelsail_mm.datasets.coco_region_class import COCORegionClassDataset
from pixelsail_mm.datasets.errors import AnnotationError, BadSampleError
from pixelsail_mm.datasets.gcg_evaluation import GCGEvaluationDataset
from pixelsail_mm.datasets.gcg_formats import (
    FlickrGCGDataset,
    GranDfDataset,
    OpenPSGGCGDataset,
    RefCOCOgGCGDataset,
)
from pixelsail_mm.datasets.grefcoco import GRefCOCODataset
from pixelsail_mm.datasets.image_caption import ImageCaptionDataset
from pixelsail_mm.datasets.llava import LLaVADataset
from pixelsail_mm.datasets.merged import MergedDataset
from pixelsail_mm.datasets.mixture import MixtureDataset
from pixelsail_mm.datasets.muse import MUSEDataset
from pixelsail_mm.datasets.osprey import OspreyDataset
from pixelsail_mm.datasets.osprey_description import OspreyDescriptionDataset
from pixelsail_mm.datasets.perbench import (
    PerBenchCaptionDataset,
    PerBenchMCQDataset,
    PerBenchVRESDataset,
)
from pixelsail_mm.datasets.pix2cap import Pix2CapRegionDataset, Pix2CapSegDataset
from pixelsail_mm.datasets.pixel_chat import PixelChatDataset
from pixelsail_mm.datasets.reason_seg import ReasonSegDataset
from pixelsail_mm.datasets.refcoco import RefCOCODataset
from pixelsail_mm.datasets.refcocog_region import RefCOCOgRegionDataset
from pixelsail_mm.datasets.sam_region import SAMRegionDataset

__all__ = [
    'AnnotationError', 'BadSampleError', 'COCOPanopticDataset', 'COCORegionClassDataset',
    'COCOSemanticDataset', 'FlickrGCGDataset', 'GCGEvaluationDataset', 'GRefCOCODataset',
    'GranDfDataset', 'ImageCaptionDataset', 'LLaVADataset', 'MUSEDataset', 'MergedDataset',
    'MixtureDataset', 'OpenPSGGCGDataset', 'OspreyDataset', 'OspreyDescriptionDataset',
    'PerBenchCaptionDataset', 'PerBenchMCQDataset', 'PerBenchVRESDataset',
    'Pix2CapRegionDataset', 'Pix2CapSegDataset', 'PixelChatDataset', 'PixelDataset',
    'ReasonSegDataset', 'RefCOCODataset', 'RefCOCOgGCGDataset', 'RefCOCOgRegionDataset',
    'SAMRegionDataset'
]
